"""OmniGen2's transformer, which diffusers does not have. Its modules are named as in the released checkpoint.

The text, the reference images and the picture are refined apart, then run through the main blocks as one sequence in
this order. One picture at a time: a batch of one has nothing to pad but reference images of different sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import LuminaLayerNormContinuous
from torch import nn

from ...errors import FileError
from .blocks import CONDITION_WIDTH, OmniGen2TransformerBlock, TimeTextEmbedding
from .rotary import RotaryTables, positions

MAX_REFERENCES = 5  # rows of image_index_embedding


class OmniGen2Transformer2DModel(ModelMixin, ConfigMixin):
    """Predicts the velocity from noise to image.

    Args:
        patch_size: latent pixels per token and side.
        in_channels: of the latents.
        out_channels: None is ``in_channels``.
        hidden_size: width of the tokens.
        num_layers: main blocks.
        num_refiner_layers: blocks of each of the three refiners.
        num_attention_heads, num_kv_heads: of queries; of keys and values.
        multiple_of, ffn_dim_multiplier: see :class:`.blocks.OmniGen2TransformerBlock`.
        norm_eps: of the blocks' norms.
        axes_dim_rope: channels of the three rotary axes; their sum is a head's.
        axes_lens: positions of each.
        text_feat_dim: width of the text encoder.
        timestep_scale: by which the time is multiplied.

    Raises:
        FileError: the rotary axes do not fill a head.
    """

    _repeated_blocks = ["OmniGen2TransformerBlock"]
    _no_split_modules = ["OmniGen2TransformerBlock"]
    _skip_layerwise_casting_patterns = ["x_embedder", "ref_image_patch_embedder", "image_index_embedding", "norm"]

    @register_to_config
    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 16,
        out_channels: int | None = None,
        hidden_size: int = 2304,
        num_layers: int = 26,
        num_refiner_layers: int = 2,
        num_attention_heads: int = 24,
        num_kv_heads: int = 8,
        multiple_of: int = 256,
        ffn_dim_multiplier: float | None = None,
        norm_eps: float = 1e-5,
        axes_dim_rope: tuple[int, int, int] = (32, 32, 32),
        axes_lens: tuple[int, int, int] = (300, 512, 512),
        text_feat_dim: int = 1024,
        timestep_scale: float = 1.0,
    ) -> None:
        super().__init__()
        head = hidden_size // num_attention_heads
        if sum(axes_dim_rope) != head:
            raise FileError(
                f"The transformer's configuration cannot be used: its rotary axes {list(axes_dim_rope)} do not fill a "
                f"head of {head} channels. Download it again."
            )
        self.patch_size = patch_size
        self.rotary = RotaryTables(axes_dim_rope, axes_lens)

        def blocks(count: int, modulated: bool = True) -> nn.ModuleList:
            return nn.ModuleList(
                OmniGen2TransformerBlock(
                    hidden_size, num_attention_heads, num_kv_heads, multiple_of, ffn_dim_multiplier, norm_eps, modulated
                )
                for _ in range(count)
            )

        per_token = patch_size * patch_size
        self.x_embedder = nn.Linear(per_token * in_channels, hidden_size)
        self.ref_image_patch_embedder = nn.Linear(per_token * in_channels, hidden_size)
        self.time_caption_embed = TimeTextEmbedding(hidden_size, text_feat_dim, norm_eps, timestep_scale)
        self.noise_refiner = blocks(num_refiner_layers)
        self.ref_image_refiner = blocks(num_refiner_layers)
        self.context_refiner = blocks(num_refiner_layers, modulated=False)
        self.layers = blocks(num_layers)
        self.norm_out = LuminaLayerNormContinuous(
            hidden_size,
            min(hidden_size, CONDITION_WIDTH),
            elementwise_affine=False,
            eps=1e-6,
            out_dim=per_token * (out_channels or in_channels),
        )
        self.image_index_embedding = nn.Parameter(torch.empty(MAX_REFERENCES, hidden_size))

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        reference_latents: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """One prediction.

        Args:
            hidden_states: [1, C, h, w], noisy latents; h and w are multiples of ``patch_size``.
            timestep: [1], 0 for noise and 1 for the image.
            encoder_hidden_states: [1, L, text_feat_dim], without padding.
            reference_latents: [C, h, w] each, at most five.

        Returns:
            [1, C, h, w].
        """
        time, text = self.time_caption_embed(timestep, encoder_hidden_states)
        pictures = [*reference_latents, hidden_states[0]]
        grids = [(p.shape[1] // self.patch_size, p.shape[2] // self.patch_size) for p in pictures]
        lengths = [text.shape[1], *(rows * columns for rows, columns in grids)]
        rotary = self.rotary(positions(lengths[0], grids), hidden_states.device)
        text_rotary, *reference_rotary, image_rotary = rotary.split(lengths, dim=1)

        seen = torch.ones(1, sum(lengths), dtype=torch.bool, device=hidden_states.device)
        for block in self.context_refiner:
            text = block(text, seen[:, : lengths[0]], text_rotary)
        image = self.x_embedder(self._tokens(hidden_states[0])[None])
        references = self._embedded(reference_latents)
        for block in self.noise_refiner:
            image = block(image, seen[:, : lengths[-1]], image_rotary, time)
        tokens = torch.cat([text, *self._refined(references, reference_rotary, time), image], dim=1)
        for block in self.layers:
            tokens = block(tokens, seen, rotary, time)
        # the whole sequence, as in the reference: matrix products of fewer rows may round otherwise
        output = self.norm_out(tokens, time)[0, -lengths[-1] :]
        return self._picture(output, *grids[-1])[None]

    def _tokens(self, picture: torch.Tensor) -> torch.Tensor:
        """[C, h, w] -> [tokens, patch * patch * C]."""
        size = self.patch_size
        split = picture.unflatten(2, (-1, size)).unflatten(1, (-1, size))
        return split.permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)

    def _picture(self, tokens: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """The inverse of :meth:`_tokens`."""
        size = self.patch_size
        split = tokens.reshape(rows, columns, size, size, -1)
        return split.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)

    def _embedded(self, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The references' tokens, [tokens, width] each, told apart by their number."""
        if not latents:
            return []
        tokens = [self._tokens(picture) for picture in latents]
        embedded = self.ref_image_patch_embedder(torch.cat(tokens)[None])[0].split([len(part) for part in tokens])
        return [part + self.image_index_embedding[index] for index, part in enumerate(embedded)]

    def _refined(
        self, references: list[torch.Tensor], rotary: Sequence[torch.Tensor], time: torch.Tensor
    ) -> list[torch.Tensor]:
        """The references through their refiner, as one padded batch; [1, tokens, width] each."""
        if not references:
            return []
        lengths = [len(part) for part in references]
        batch = nn.utils.rnn.pad_sequence(references, batch_first=True)
        turns = nn.utils.rnn.pad_sequence([part[0] for part in rotary], batch_first=True)
        keys = torch.arange(max(lengths), device=batch.device) < torch.tensor(lengths, device=batch.device)[:, None]
        times = time.repeat(len(lengths), 1)
        for block in self.ref_image_refiner:
            batch = block(batch, keys, turns, times, padded=len(set(lengths)) > 1)
        return [part[None, :length] for part, length in zip(batch, lengths, strict=True)]
