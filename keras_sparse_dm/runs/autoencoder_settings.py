"""Settings of a run that trains an autoencoder. Loads no Keras."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.presets import AutoencoderSettings, ImageSettings, from_plain, get_preset
from keras_sparse_dm.runs.folder import CONFIG_FILE
from keras_sparse_dm.runs.setting_checks import (
    check_autoencoder_settings,
    check_image_settings,
    check_seed_and_verbose,
)
from keras_sparse_dm.runs.settings import RunSettings

tyro = lazy_module("tyro")

_Flat = tyro.conf.OmitArgPrefixes


@dataclass(frozen=True)
class AutoencoderRunSettings:
    """Train the autoencoder of latent diffusion on your own images."""

    preset: tyro.conf.Positional[str] = "ldm_kanjivg"
    """Latent diffusion preset that sets the defaults of all other options."""
    output_dir: Path | None = None
    """Folder of the run; by default runs/autoencoder-PRESET-seedSEED."""
    resume: bool = False
    """Continue the run in the output folder from its last checkpoint."""
    seed: int = 0
    """Seed of everything random in the run."""
    data_dir: Path | None = None
    """Folder of the data set's files."""
    cache_dir: Path | None = None
    """Folder for prepared data; by default the user's cache folder."""
    verbose: int = -1
    """0 silent, 1 progress bar, 2 one line an epoch; -1 picks 1 in a terminal and 2 elsewhere."""
    model: _Flat[AutoencoderSettings] = field(
        default_factory=lambda: get_preset("ldm_kanjivg").autoencoder
    )
    data: _Flat[ImageSettings] = field(default_factory=lambda: get_preset("ldm_kanjivg").data)

    @classmethod
    def from_preset(cls, name, **settings):
        """Return the settings of a preset.

        Raises:
            SettingsError: for an unknown preset, or one without an autoencoder.
        """
        try:
            preset = get_preset(name)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        if preset.autoencoder is None:
            raise SettingsError(f"preset {name} has no autoencoder; give a preset ldm_*.")
        return cls(preset=name, model=preset.autoencoder, data=preset.data, **settings)

    @property
    def folder(self):
        """Folder of the run: `output_dir`, or by default a folder named after the settings."""
        if self.output_dir is not None:
            return self.output_dir
        return Path("runs") / f"autoencoder-{self.preset}-seed{self.seed}"

    to_dict = RunSettings.to_dict

    def with_stored(self, stored):
        """Return these settings with the values of a stored run.

        Args:
            stored: Dictionary from the `config.json` of the run.

        Raises:
            SettingsError: if it is not a configuration of this version.
        """
        try:
            data_dir = stored["data_dir"]
            return dataclasses.replace(
                self,
                preset=stored["preset"],
                seed=stored["seed"],
                data_dir=None if data_dir is None else Path(data_dir),
                model=from_plain(AutoencoderSettings, stored["model"]),
                data=ImageSettings(**stored["data"]),
            )
        except (KeyError, TypeError) as error:
            raise SettingsError(
                f"{self.folder / CONFIG_FILE} is not a configuration of this version: {error!r}"
            ) from None

    def check(self):
        """Check all that can be checked without loading Keras or data.

        Raises:
            SettingsError: naming the option, what was received and what would be right.
        """
        check_image_settings(self.data, self.data_dir)
        check_autoencoder_settings(self.model, "--")
        check_seed_and_verbose(self)
