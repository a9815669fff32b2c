"""One module for each format of sketch files; `keras_sparse_dm.data.reading` gathers them."""
