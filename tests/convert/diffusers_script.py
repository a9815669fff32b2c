"""Random networks of the diffusers library and their outputs, made in a separate process:
its LLVM and TensorFlow's do not share one everywhere.

    python diffusers_script.py FOLDER

writes a pipeline's folders `unet/` and `vqvae/`, and `answers.npz`, channels last.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel, VQModel

folder = Path(sys.argv[1])
torch.manual_seed(0)
unet = UNet2DModel(
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=16,
)
vqvae = VQModel(
    block_out_channels=(16, 32, 32),
    layers_per_block=1,
    down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
    up_block_types=("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    latent_channels=4,
    vq_embed_dim=3,
    num_vq_embeddings=64,
    norm_num_groups=8,
    scaling_factor=0.5,
)
for parameter in (*unet.parameters(), *vqvae.parameters()):
    # Unlike the default, nothing is 0 or 1, and attention is not nearly uniform.
    torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.12)
unet.save_pretrained(folder / "unet")
vqvae.save_pretrained(folder / "vqvae")


def channels_last(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
images = torch.randn(2, 3, 16, 16)
with torch.no_grad():
    noise = unet(x, t).sample
    latents = vqvae.encode(images).latents
    _, _, (_, _, indices) = vqvae.quantize(latents)
    decoded = vqvae.decode(latents).sample
np.savez(
    folder / "answers.npz",
    x=channels_last(x),
    t=t.numpy(),
    noise=channels_last(noise),
    images=channels_last(images),
    latents=channels_last(latents),
    indices=indices.numpy().reshape(2, 4, 4),
    decoded=channels_last(decoded),
)
