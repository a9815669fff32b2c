"""Sparse checkpoints: one safetensors file that holds only what is not pruned.

This is version 2 of the format. The file is a safetensors file, which any reader of that format
opens. The `__metadata__` of its header holds strings:

- `header_checksum`: checksum of the file's first 8 bytes and the header, with `0` for these 32
  digits. Its place and this rule are the same in all versions.
- `format`: `keras_sparse_dm.sparse`; `format_version`: `2`.
- `content`: JSON of an object with
    - `config`: the model's configuration, as Keras serializes it; `metadata`: the caller's;
      `dtype`, `optimizer`: arguments of `save_sparse`; `versions`: of the packages that wrote the
      file
    - `checksums`: `{tensor: checksum of its bytes}`
    - `arrays`: `{name: encoding of the array}`, see below
    - `layers`: for each layer its `path`, its `location` in the model
      (`keras_sparse_dm.layers.locations`), and its `arrays`, `{key: name of the array}`. The keys
      are those of `Layer.save_own_variables`, and `seed:<attribute>` for the state of a random
      generator.
    - `optimizers`: for the optimizer and each one that it wraps, from the outermost in, its `name`
      and `arrays`. The key of a variable's state is `<name of the variable's array>:<kind of
      state>`, and that of any other variable its path. An optimizer with its own
      `save_own_variables` has its own keys.

The order of layers and arrays has no meaning. The name of an array is the path of its variable. If
two variables have the same path, a number follows it, and the array's `path` holds the path alone.

A checksum is BLAKE2b of 16 bytes, in hexadecimal digits. An array has its `shape` and `dtype` in
the model, and one of these encodings, in C order:

- `dense`: the tensor of the same name is the array.
- `bitmask`, `elias_fano`: a sparse kernel. The tensor of the same name holds the values of the
  `active` weights in order, and `<name>:mask` their places: one bit for each weight, or their
  numbers in Elias-Fano code (`keras_sparse_dm.masks.encoding`), whichever is smaller. An active
  weight may be zero.
- `as_kernel`: an optimizer's state of a sparse kernel, zero where the kernel is pruned. The tensor
  holds the values at the active weights of `kernel`.
- `bits`: booleans and small numbers. The tensor holds `planes` masks of one bit per element, the
  lowest bit of all elements first.
- `mask_of`: the mask of the array `kernel`, without a tensor.

Version 1 has other keys: a layer's `position` and `name` instead of `location` and `path`, the
number of an optimizer's variable, and `seed_<number>`.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={"reader": ["load_sparse", "read_header"], "writer": ["save_sparse"]},
)
