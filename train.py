"""Trains a sparse diffusion model: `python train.py [PRESET] [options]`; see `--help`."""

import sys

from keras_sparse_dm.commands.train import train_command

if __name__ == "__main__":
    sys.exit(train_command(sys.argv[1:], prog="train.py"))
