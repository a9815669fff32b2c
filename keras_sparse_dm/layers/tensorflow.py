"""Masks in TensorFlow's own checkpoints."""

import tensorflow as tf


def checkpointed(masks):
    """Return an object through which `tf.train.Checkpoint` finds mask variables.

    A checkpoint follows attributes. As an attribute of a layer, a mask would be a weight of it;
    inside a `tf.Module`, TensorFlow sees it and Keras does not.

    Args:
        masks: `{name: keras.Variable}`.
    """
    module = tf.Module()
    for name, mask in masks.items():
        setattr(module, name, mask)
    return module
