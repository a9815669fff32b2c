"""Train a sparse diffusion model: `python train.py [PRESET] [options]`; see `--help`."""

import sys

from keras_sparse_dm.commands.options import readers_may_leave
from keras_sparse_dm.commands.train import train_command

if __name__ == "__main__":
    with readers_may_leave():
        sys.exit(train_command(sys.argv[1:], prog="train.py"))
