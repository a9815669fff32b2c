"""Sparse checkpoints: one safetensors file that holds only what is not pruned.

The format, version 2. The file is a safetensors file, which any reader of that format opens. Its
header's `__metadata__` holds strings:

- `header_checksum`: of the file's first 8 bytes and the header, in which these 32 digits are `0`.
  Its place, and this rule, are the same in all versions.
- `format`: `keras_sparse_dm.sparse`; `format_version`: `2`.
- `content`: JSON of an object with
    - `config`: the model's configuration, as Keras serializes it; `metadata`: what the caller gave;
      `dtype`, `optimizer`: as of `save_sparse`; `versions`: of the packages that wrote the file
    - `checksums`: `{tensor: checksum of its bytes}`
    - `arrays`: `{name: how this array is stored}`, see below
    - `layers`: which array goes where: for each layer its `path`, its `location` in the model
      (`keras_sparse_dm.layers.locations`), and its `arrays`, `{key: name of the array}`. The keys
      are those of the layer's own saving, and `seed:<attribute>` of a random generator's state.
    - `optimizers`: for the optimizer and those that it wraps, from the outermost in, its `name` and
      `arrays`. The key of a variable's state is `<name of the variable's array>:<kind of state>`,
      that of any other variable its path; an optimizer that saves in a way of its own has its keys.

The order of layers and arrays says nothing. An array's name is the path of its variable, with a
number behind it where two variables have one path; then its `path` has the path alone.

A checksum is BLAKE2b of 16 bytes, in hexadecimal digits. An array has its `shape` and `dtype` in
the model, and one of these encodings, in C order:

- `dense`: the tensor of its name is the array.
- `bitmask`, `elias_fano`: of a sparse kernel. The tensor of its name holds the values of the
  `active` weights, one after the other, and `<name>:mask` says which these are: by one bit for
  each weight, or by their numbers in Elias-Fano code (`mask_encoding`), whichever is smaller. An
  active weight may be zero.
- `as_kernel`: of an optimizer's state of a sparse kernel, zero where that is pruned: values at the
  active weights of `kernel`.
- `bits`: of booleans and small numbers. The tensor of its name holds `planes` masks of one bit per
  element, the lowest bit of all elements first.
- `mask_of`: the mask of the array `kernel`; has no tensor.

Version 1 differs in the keys: a layer's `position` and `name` in place of `location` and `path`,
the number of an optimizer's variable, and `seed_<number>`.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={"reader": ["load_sparse", "read_header"], "writer": ["save_sparse"]},
)
