"""Spellings of the names of a network's tensors in a source, and other tensors it may hold."""

from dataclasses import dataclass

from keras_sparse_dm.convert import diffusers, original

TITLES = {"unet": "U-Net", "autoencoder": "autoencoder", "chirodiff": "ChiroDiff network"}


@dataclass(frozen=True)
class Spelling:
    """Rule from a network's own tensor names to those in a file.

    Attributes:
        naming: `"original"`, `"diffusers"`, or `"averaged"` for the original's averaged copy of
            the weights.
        prefix: Prefix of every name.
        outside: Names that get no prefix.
        old_attention: Whether diffusers' attention has the names of 2022.
    """

    naming: str
    prefix: str = ""
    outside: tuple = ()
    old_attention: bool = False

    @property
    def network_naming(self):
        """Naming of the network's own names."""
        return "original" if self.naming == "averaged" else self.naming

    def name(self, name):
        """Return the name that a tensor has in the file."""
        if name in self.outside:
            return name
        if self.naming == "averaged":
            # `LitEma` keeps buffers, whose names cannot have dots.
            name = name.replace(".", "")
        if self.old_attention:
            name = diffusers.old_attention_name(name)
        return self.prefix + name

    def plan(self, network_plan):
        """Return a network's plan with the names in the file."""
        return {self.name(name): slot for name, slot in network_plan.items()}

    def own_names(self, names):
        """Return `{name without prefix: name}` for the names in a file that this spelling reads."""
        own = {n.removeprefix(self.prefix): n for n in names if n.startswith(self.prefix)}
        return own | {n: n for n in self.outside if n in names}


def published(kind):
    """Return the `Spelling` of the original program's checkpoints of the whole model."""
    return Spelling("original", original.PREFIXES[kind], outside=(original.FREQUENCIES,))


def _spellings(kind):
    known = [Spelling("original"), published(kind), Spelling("original", original.PREFIXES[kind])]
    if kind == "unet":
        known.append(Spelling("original", "diffusion_model."))
    if kind in diffusers.PLANS:
        known += [
            Spelling("diffusers", prefix, old_attention=old)
            for prefix in ("", *(f"{folder}." for folder in diffusers.FOLDERS[kind]))
            for old in (False, True)
        ]
    averaged = []
    if kind != "chirodiff":
        averaged = [Spelling("averaged", "model_ema.")]
    if kind == "unet":
        # The original averages the module around the U-Net.
        averaged.append(Spelling("averaged", "model_ema.diffusion_model"))
    return known, averaged


# A tensor that every network of the kind has.
_MARKS = {
    ("unet", "original"): "time_embed.0.weight",
    ("unet", "diffusers"): "time_embedding.linear_1.weight",
    ("autoencoder", "original"): "encoder.mid.block_1.conv1.weight",
    ("autoencoder", "diffusers"): "encoder.mid_block.resnets.0.conv1.weight",
    ("chirodiff", "original"): "final_proj.0.weight",
}


def find_networks(names):
    """Find the networks whose tensors have these names: `{kind: Spelling}`."""
    found = {}
    for kind in TITLES:
        weights, averaged = _spellings(kind)
        for spelling in (*weights, *averaged):
            mark = _MARKS[kind, spelling.network_naming]
            if spelling.name(mark) in names:
                found.setdefault(kind, spelling)
    return found


def choose_spelling(kind, plans, names, ema=None):
    """Choose the spelling in which a source has most of a network's tensors.

    Args:
        kind: Kind of the network.
        plans: `{naming: plan}` of the network.
        names: Names of the source's tensors.
        ema: Whether to take the averaged copy; None to take it if there is nothing else.

    Returns:
        `(spelling, plan)`, the plan with the source's names.

    Raises:
        ValueError: if the source has none of the tensors.
    """
    weights, averaged = _spellings(kind)
    names = dict.fromkeys(names)
    for spellings in {None: (weights, averaged), False: (weights,), True: (averaged,)}[ema]:
        best, most = None, 0
        for spelling in spellings:
            plan = spelling.plan(plans[spelling.network_naming])
            present = sum(name in names for name in plan)
            if present > most:
                best, most = (spelling, plan), present
        if best:
            return best
    some = ", ".join([*map(str, names)][:3]) or "none"
    raise ValueError(
        f"`source` holds no {TITLES[kind]}{' with averaged weights' if ema else ''}; "
        f"its {len(names)} tensors are {some}{', ...' if len(names) > 3 else ''}."
    )


def may_be_left(name, spellings):
    """Tell whether a tensor is known to belong to no weight of the networks to load.

    Args:
        name: Name of a tensor that is in no plan.
        spellings: `{kind: Spelling}` of the networks to load.
    """
    if "chirodiff" in spellings:
        return False
    if name in original.BUFFERS or name == original.SCALE_FACTOR:
        return True
    averaged = any(spelling.naming == "averaged" for spelling in spellings.values())
    others = ["model_ema.decay", "model_ema.num_updates"]
    if averaged:
        others.append(original.PREFIXES["unet"])
    else:
        others.append("model_ema.")
    for kind, folders in diffusers.FOLDERS.items():
        if kind not in spellings:
            others += [original.PREFIXES[kind], *(f"{folder}." for folder in folders)]
    if "autoencoder" in spellings:
        # Networks of the autoencoder's training: a perceptual loss and a discriminator.
        others += ["loss.", original.PREFIXES["autoencoder"] + "loss."]
    return name.startswith(tuple(others))
