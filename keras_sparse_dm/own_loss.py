"""Training and test steps of models with a loss of their own, on every backend."""

import keras

from keras_sparse_dm.lazy import lazy_module

jax = lazy_module("jax")
tf = lazy_module("tensorflow")
torch = lazy_module("torch")


class _OnTensorFlow:
    def train_step(self, data):
        batch = self.prepared_batch(data, training=True)
        with tf.GradientTape() as tape:
            loss, outcome = self.batch_loss(batch, training=True)
            # Regularizers of layers.
            scaled_loss = self.optimizer.scale_loss(sum(self.losses, loss))
        gradients = tape.gradient(scaled_loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return self.finish_batch(batch, outcome, training=True)

    def test_step(self, data):
        batch = self.prepared_batch(data, training=False)
        _, outcome = self.batch_loss(batch, training=False)
        return self.finish_batch(batch, outcome, training=False)


class _OnTorch:
    def train_step(self, data):
        with torch.no_grad():
            batch = self.prepared_batch(data, training=True)
        self.zero_grad()
        loss, outcome = self.batch_loss(batch, training=True)
        self.optimizer.scale_loss(sum(self.losses, loss)).backward()
        variables = self.trainable_variables
        with torch.no_grad():
            self.optimizer.apply([v.value.grad for v in variables], variables)
            return self.finish_batch(batch, outcome, training=True)

    def test_step(self, data):
        with torch.no_grad():
            batch = self.prepared_batch(data, training=False)
            _, outcome = self.batch_loss(batch, training=False)
            return self.finish_batch(batch, outcome, training=False)


class _OnJax:
    """Steps as functions of the state, the values of all variables."""

    def train_step(self, state, data):
        trainable, others, of_optimizer, of_metrics = state

        def loss_of(trainable):
            values = self._values(trainable, others)
            # The factor of loss scaling.
            values += zip(self.optimizer.variables, of_optimizer, strict=True)
            with keras.StatelessScope(state_mapping=values, collect_losses=True) as scope:
                batch = self.prepared_batch(data, training=True)
                loss, outcome = self.batch_loss(batch, training=True)
                scaled_loss = self.optimizer.scale_loss(sum(self.losses, loss))
            new = [scope.get_current_value(v) for v in self.non_trainable_variables]
            return scaled_loss, (batch, outcome, new)

        with_gradient = jax.value_and_grad(loss_of, has_aux=True)
        (_, (batch, outcome, others)), gradients = with_gradient(trainable)
        trainable, of_optimizer = self.optimizer.stateless_apply(of_optimizer, gradients, trainable)
        logs, (trainable, others, of_metrics) = self._finish(
            (trainable, others, of_metrics), batch, outcome, training=True
        )
        return logs, (trainable, others, of_optimizer, of_metrics)

    def test_step(self, state, data):
        trainable, others, of_metrics = state
        with keras.StatelessScope(state_mapping=self._values(trainable, others)) as scope:
            batch = self.prepared_batch(data, training=False)
            _, outcome = self.batch_loss(batch, training=False)
        others = [scope.get_current_value(v) for v in self.non_trainable_variables]
        return self._finish((trainable, others, of_metrics), batch, outcome, training=False)

    def _finish(self, state, batch, outcome, training):
        trainable, others, of_metrics = state
        values = self._values(trainable, others)
        values += zip(self.metrics_variables, of_metrics, strict=True)
        with keras.StatelessScope(state_mapping=values) as scope:
            logs = self.finish_batch(batch, outcome, training)
        variables = self.trainable_variables, self.non_trainable_variables, self.metrics_variables
        return logs, tuple([scope.get_current_value(v) for v in some] for some in variables)

    def _values(self, trainable, others):
        return [
            *zip(self.trainable_variables, trainable, strict=True),
            *zip(self.non_trainable_variables, others, strict=True),
        ]


_STEPS = {"tensorflow": _OnTensorFlow, "jax": _OnJax, "torch": _OnTorch}


class OwnLossModel(_STEPS[keras.backend.backend()], keras.Model):
    """Base class of models that train with a loss of their own.

    A subclass has three methods, which the steps of all backends call:

    - `prepared_batch(data, training)` returns what the loss needs of a batch; no gradient goes
      through it.
    - `batch_loss(prepared, training)` returns `(loss, outcome)`, a scalar tensor and anything else.
    - `finish_batch(prepared, outcome, training)` runs after the optimizer's update, and returns the
      metrics' results.
    """

    def compile_from_config(self, config):
        if keras.backend.backend() == "torch":
            # Keras saves what "auto" meant on the backend that saved the file: True on JAX.
            config = config | {"jit_compile": "auto"}
        super().compile_from_config(config)
