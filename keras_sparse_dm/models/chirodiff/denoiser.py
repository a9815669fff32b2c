"""ChiroDiff's denoiser: a bidirectional GRU over the points of a sketch (Das et al. 2023)."""

import functools
import math

import keras
from keras import ops

from keras_sparse_dm.checks import one_of, whole_number, whole_numbers
from keras_sparse_dm.layers import SparseDense, SparseGRU
from keras_sparse_dm.models.chirodiff.gru_for_sampling import can_sample, sampling_outputs
from keras_sparse_dm.models.chirodiff.gru_for_training import can_train, training_outputs
from keras_sparse_dm.presets import get_preset

REPRESENTATIONS = ("absolute", "delta")


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class ChiroDiff(keras.Model):
    """Denoiser of sketches: predicts the noise at all points of a noised sketch at once.

    Reads each point's position, velocity and pen bit, and random Fourier features of the timestep.
    It computes the velocity from the positions, or the positions from the velocity, whichever the
    data lacks. A stack of bidirectional GRUs follows, then two linear layers; the second reads the
    time features again. All kernels can be sparse (paper, section 3.3.1 and figure 1b).

    On a CPU, faster loops replace Keras's loop over the points; see `models/chirodiff/__init__.py`.

    Args:
        units: Units of each GRU direction; a list gives every GRU its own number.
        num_layers: Number of bidirectional GRUs.
        representation: `"absolute"` for points that are positions, `"delta"` for differences.
        time_features: Number of features of the timestep; even.
        time_scale: Standard deviation of their frequencies.
        timesteps: Number T of timesteps of the noise schedule.
        seed: Integer seed of the frequencies, which never train and are saved with the model.
        projection_units: Width of the first linear layer; by default that of the last GRU.

    Call arguments:
        inputs: Tuple `(points, t, lengths)`: float tensor (batch_size, max_length, 3) of x, y
            and pen; integer tensor (batch_size,) of timesteps from 0 to T - 1; integer tensor
            (batch_size,) of numbers of points. Values past a sketch's length are ignored.

    Returns:
        Predicted noise: float tensor (batch_size, max_length, 3), zero past each length.

    Raises:
        ValueError: for an unknown representation, or for sizes that are not positive.

    Example:

    >>> model = ChiroDiff(units=48, num_layers=2)
    >>> points, t, lengths = np.zeros((2, 9, 3)), np.array([0, 999]), np.array([9, 5])
    >>> model((points, t, lengths)).shape
    TensorShape([2, 9, 3])
    """

    point_features = 3

    def __init__(
        self,
        units=96,
        num_layers=3,
        representation="absolute",
        time_features=8,
        time_scale=4.0,
        timesteps=1000,
        seed=None,
        projection_units=None,
        name="chirodiff",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        one_of("`representation`", representation, REPRESENTATIONS)
        of_each = isinstance(units, (list, tuple))
        (whole_numbers if of_each else whole_number)("`units`", units, 1)
        for name, value in (
            ("num_layers", num_layers),
            ("time_features", time_features),
            ("timesteps", timesteps),
            ("projection_units", 1 if projection_units is None else projection_units),
        ):
            whole_number(f"`{name}`", value, 1)
        if of_each and len(units) != num_layers:
            raise ValueError(
                f"`units` must be one number, or one for each of the {num_layers} GRUs of "
                f"`num_layers`; received {units!r}."
            )
        all_units = list(units) if of_each else [units] * num_layers
        if projection_units is None:
            projection_units = all_units[-1]
        if time_features % 2:
            raise ValueError(f"`time_features` must be even; received {time_features}.")
        self.units = all_units if of_each else units
        self.num_layers = num_layers
        self.representation = representation
        self.time_features = time_features
        self.time_scale = time_scale
        self.timesteps = timesteps
        self.seed = seed
        self.projection_units = projection_units
        self.recurrent = [
            keras.layers.Bidirectional(
                SparseGRU(number, return_sequences=True, name="gru"), name=f"bidirectional_{i}"
            )
            for i, number in enumerate(all_units)
        ]
        self.output_projection = SparseDense(projection_units, name="output_projection")
        self.noise_projection = SparseDense(self.point_features, name="noise_projection")
        self.build()

    def build(self, input_shape=None):
        # All shapes follow from the arguments, so the constructor builds the model.
        if self.built:
            return
        self.time_frequencies = self.add_weight(
            name="time_frequencies",
            shape=(self.time_features // 2,),
            initializer=keras.initializers.RandomNormal(stddev=1.0, seed=self.seed),
            trainable=False,
        )
        # Positions and velocities, and one pen bit.
        features = 2 * (self.point_features - 1) + 1 + self.time_features
        for layer in self.recurrent:
            layer.build((None, None, features))
            features = 2 * layer.forward_layer.units
        self.output_projection.build((None, None, features))
        self.noise_projection.build((None, None, self.projection_units + self.time_features))
        self.built = True

    @property
    def skips_padding(self):
        """True if inference skips the padding past a batch's longest sketch."""
        return can_sample(self.recurrent)

    @classmethod
    def from_preset(cls, name, **overrides):
        """Return the denoiser of a preset, with some arguments replaced.

        Args:
            name: Name of a ChiroDiff preset.
            overrides: Arguments of the class that replace the preset's.

        Raises:
            ValueError: for a name that is not a ChiroDiff preset.
        """
        preset = get_preset(name)
        if preset.model.kind != "chirodiff":
            raise ValueError(f"`name` must be a ChiroDiff preset; received {name!r}.")
        return cls(**(preset.denoiser_arguments() | overrides))

    def embed_time(self, t):
        """Return random Fourier features of timesteps.

        Args:
            t: Integer tensor (batch_size,), counting from 0.

        Returns:
            Float tensor (batch_size, time_features).
        """
        # Half precision cannot tell a thousand timesteps apart.
        time = ops.cast(t + 1, "float32") / self.timesteps
        frequencies = ops.cast(self.time_frequencies, "float32") * self.time_scale
        angle = 2 * math.pi * (time[:, None] * frequencies[None])
        embedded = ops.concatenate([ops.sin(angle), ops.cos(angle)], axis=-1)
        return ops.cast(embedded, self.compute_dtype)

    def call(self, inputs, training=False):
        points, t, lengths = inputs
        max_length = ops.shape(points)[1]
        mask = ops.arange(max_length)[None] < ops.cast(lengths, "int32")[:, None]
        points = ops.where(mask[..., None], points, ops.zeros_like(points))

        embedded = self.embed_time(t)
        hidden = self._with_time(self._positions_and_velocities(points), embedded[:, None])
        if not training and can_sample(self.recurrent):
            # The loop has points, not sketches, on the first axis.
            head = functools.partial(self._noise, time=embedded)
            return sampling_outputs(self.recurrent, hidden, mask, head)
        if training and can_train(self.recurrent):
            hidden = training_outputs(self.recurrent, hidden, mask)
        else:
            for layer in self.recurrent:
                hidden = layer(hidden, mask=mask, training=training)
        noise = self._noise(hidden, embedded[:, None])
        return ops.where(mask[..., None], noise, ops.zeros_like(noise))

    def _noise(self, hidden, time):
        return self.noise_projection(self._with_time(self.output_projection(hidden), time))

    def _with_time(self, features, time):
        """Concatenate features of points and time features that broadcast to them."""
        time = ops.broadcast_to(time, (*ops.shape(features)[:2], self.time_features))
        return ops.concatenate([features, time], axis=-1)

    def _positions_and_velocities(self, points):
        if self.representation == "delta":
            positions = ops.cumsum(points[..., :2], axis=1)
            return ops.concatenate([positions, points], axis=-1)
        before = ops.pad(points[:, :-1, :2], ((0, 0), (1, 0), (0, 0)))
        return ops.concatenate([points, points[..., :2] - before], axis=-1)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[0])

    def get_config(self):
        return {
            "name": self.name,
            "units": self.units,
            "num_layers": self.num_layers,
            "representation": self.representation,
            "time_features": self.time_features,
            "time_scale": self.time_scale,
            "timesteps": self.timesteps,
            "seed": self.seed,
            "projection_units": self.projection_units,
        }
