"""Masks in TensorFlow checkpoints."""

import tensorflow as tf


def checkpointed(masks):
    """Return an object through which `tf.train.Checkpoint` finds mask variables.

    Checkpoints follow attributes. A mask that is an attribute of a layer would become one of its
    weights; Keras does not look inside a `tf.Module`, but TensorFlow does.

    Args:
        masks: `{name: keras.Variable}`.
    """
    module = tf.Module()
    for name, mask in masks.items():
        setattr(module, name, mask)
    return module
