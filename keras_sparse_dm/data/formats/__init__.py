"""One module per format of sketch files; `keras_sparse_dm.data.reading` combines them."""
