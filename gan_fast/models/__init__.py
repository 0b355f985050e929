"""Generators and discriminators.

>>> import torch
>>> from gan_fast.models import DCGANDiscriminator, DCGANGenerator
>>> generator = DCGANGenerator(latent_dim=100, image_size=32, width=8)
>>> images = generator(torch.randn(4, 100))
>>> images.shape, DCGANDiscriminator(image_size=32, width=8)(images).shape
(torch.Size([4, 3, 32, 32]), torch.Size([4]))
"""

from gan_fast.models.dcgan import DCGANDiscriminator, DCGANGenerator

__all__ = ["DCGANDiscriminator", "DCGANGenerator"]
