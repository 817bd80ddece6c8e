"""The network of sec. 3.1: backbone, global pooling, identity head, attribute heads.

Shapes: B images, D pooled dimensions, K identities, M attributes, H hidden units of one attribute head.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from mmfa.backbone import build_backbone
from mmfa.config import GEM_P_MAX, GEM_P_MIN, ModelConfig, TrialConfig
from mmfa.norm import DomainRole, select, split_by_domain
from mmfa.pooling import global_pool

NEGATIVE_SLOPE = 0.1
"""Slope of the heads' leaky ReLU below 0."""


class Features(NamedTuple):
    """What one forward pass gives, all float32."""

    pooled_BD: Tensor
    """H of sec. 3.1: what MDAL aligns and what retrieval ranks by."""
    identity_BK: Tensor | None
    """Identity logits; none where they were not asked for (target images)."""
    attributes_BM: Tensor
    """Pre-sigmoid outputs of the attribute heads: what eq. 2 classifies."""
    hidden_BMH: Tensor | None = None
    """Hidden layers of the attribute heads; none unless ``model.attribute_features`` asks for them."""

    def aligned_attributes(self) -> Tensor:
        """Return what eq. 3 aligns, aligned_BMD: hidden layers (D = H) where there are any, else outputs (D = 1)."""
        return self.attributes_BM[:, :, None] if self.hidden_BMH is None else self.hidden_BMH


class MMFA(nn.Module):
    """The network, randomly initialised from torch's global generator.

    Args:
        config: architecture; ``config.weights`` is not read here but by :func:`mmfa.backbone.resolve_weights`.
        num_ids: K, training identities of the source.
        num_attributes: M; 0 leaves the attribute heads out.
        weights: what the backbone starts from, checked by :func:`mmfa.backbone.resolve_weights`; None: a random start.
    """

    def __init__(
        self, config: ModelConfig, *, num_ids: int, num_attributes: int, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config, weights=weights)
        self.num_features = _num_features(self.backbone)
        self.identity_head = identity_head(
            self.num_features, num_ids, width=config.id_head_width, dropout=config.dropout
        )
        self.attribute_heads = AttributeHeads(
            self.num_features, num_attributes, width=config.attr_head_width, dropout=config.dropout
        )
        self.gem_p: Tensor | None
        exponent = nn.Parameter(torch.tensor(config.gem_p)) if config.pooling == "gem" else None
        self.register_parameter("gem_p", exponent)
        if config.bn_mode == "domain":
            split_by_domain(self)

    def train(self, mode: bool = True) -> Self:
        """Set training or eval mode; frozen BatchNorm stays in eval mode."""
        super().train(mode)
        if self.config.bn_mode == "frozen":
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images_BCHW: Tensor, *, domain: DomainRole = "source") -> Features:
        """Return pooled features and the outputs of the heads; of target images without the identity head's.

        An autocast of the caller reaches the backbone only; pooled features and heads are float32.

        Args:
            images_BCHW: normalised images.
            domain: where the images are from.
        """
        pooled_BD = self.embed(images_BCHW, domain=domain)
        with torch.autocast(pooled_BD.device.type, enabled=False):
            identity_BK = self.identity_head(pooled_BD) if domain == "source" else None
            return Features(pooled_BD, identity_BK, *self._attribute_features(pooled_BD))

    def forward_joint(self, source_BCHW: Tensor, target_BCHW: Tensor) -> tuple[Features, Features]:
        """Return what :meth:`forward` does, of both domains as one batch (``model.bn_mode=joint``).

        The identity head sees the source only.
        """
        sizes = [len(source_BCHW), len(target_BCHW)]
        pooled = torch.split(self.embed(torch.cat([source_BCHW, target_BCHW])), sizes)
        with torch.autocast(pooled[0].device.type, enabled=False):
            identity_BK = self.identity_head(pooled[0])
            # From the two parts and not the whole: gradients with respect to the parts are what is watched.
            attributes_JM, hidden_JMH = self._attribute_features(torch.cat(pooled))
        source_BM, target_BM = torch.split(attributes_JM, sizes)
        source_BMH, target_BMH = (None, None) if hidden_JMH is None else torch.split(hidden_JMH, sizes)
        source = Features(pooled[0], identity_BK, source_BM, source_BMH)
        return source, Features(pooled[1], None, target_BM, target_BMH)

    def embed(self, images_BCHW: Tensor, *, domain: DomainRole = "target") -> Tensor:
        """Return the un-normalised pooled features pooled_BD, float32: what retrieval compares (sec. 4.1).

        Args:
            images_BCHW: normalised images.
            domain: whose BatchNorm statistics are used, where each has its own.
        """
        self._select(domain)
        return self.pooled(self.backbone(images_BCHW))

    def pooled(self, maps_BDhw: Tensor) -> Tensor:
        """Return pooled_BD, float32, of the backbone's last maps."""
        return global_pool(maps_BDhw, pooling=self.config.pooling, exponent=self.gem_p)

    def attributes(self, pooled_BD: Tensor, *, domain: DomainRole = "target") -> Tensor:
        """Return the pre-sigmoid outputs attributes_BM of features that :meth:`embed` gave."""
        self._select(domain)
        outputs_BM: Tensor = self.attribute_heads(pooled_BD)[0]
        return outputs_BM

    @torch.no_grad()
    def keep_in_range(self) -> None:
        """Bring the pooling exponent, where a step took it too far, back to the nearest value that is allowed."""
        if self.gem_p is not None:
            self.gem_p.clamp_(GEM_P_MIN, GEM_P_MAX)

    def _attribute_features(self, pooled_BD: Tensor) -> tuple[Tensor, Tensor | None]:
        outputs_BM, hidden_BMH = self.attribute_heads(pooled_BD)
        return outputs_BM, hidden_BMH if self.config.attribute_features == "hidden" else None

    def _select(self, domain: DomainRole) -> None:
        if self.config.bn_mode == "domain":
            select(self, domain)


def build(
    config: TrialConfig, *, num_ids: int, num_attributes: int, weights: Mapping[str, Tensor] | None = None
) -> MMFA:
    """Return the network of a trial, arguments as in :class:`MMFA`.

    Where no target image takes part in training there is one domain, and statistics of one.
    """
    model = config.model
    if model.bn_mode == "domain" and not config.data.use_target:
        model = dataclasses.replace(model, bn_mode="separate")
    return MMFA(model, num_ids=num_ids, num_attributes=num_attributes, weights=weights)


class AttributeHeads(nn.Module):
    """M heads with one output each, computed together.

    ``width`` > 0: Linear(D -> width) -> BN -> LeakyReLU -> Dropout -> Linear(width -> 1), every head with its own
    weights. ``width`` = 0: BN -> Dropout -> Linear(D -> 1), where the heads see the same normalised features.

    Args:
        num_features: D.
        num_attributes: M.
        width: H, hidden units of each head, or 0.
        dropout: rate.
    """

    def __init__(self, num_features: int, num_attributes: int, *, width: int, dropout: float) -> None:
        super().__init__()
        self.shape = (num_attributes, width)
        self.hidden: nn.Sequential | None = None
        if num_attributes == 0:
            return
        if width == 0:
            self.output = nn.Sequential(
                nn.BatchNorm1d(num_features), nn.Dropout(dropout), nn.Linear(num_features, num_attributes)
            )
            return
        self.hidden = nn.Sequential(
            nn.Linear(num_features, num_attributes * width),
            nn.BatchNorm1d(num_attributes * width),
            nn.LeakyReLU(NEGATIVE_SLOPE),
        )
        self.dropout = nn.Dropout(dropout)
        bound = 1 / math.sqrt(width)  # nn.Linear's own initialisation
        self.weight_MH = nn.Parameter(torch.empty(num_attributes, width).uniform_(-bound, bound))
        self.bias_M = nn.Parameter(torch.empty(num_attributes).uniform_(-bound, bound))

    def forward(self, pooled_BD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the pre-sigmoid outputs attributes_BM, and the hidden layers before dropout, hidden_BMH, if any."""
        if self.shape[0] == 0:
            return pooled_BD.new_zeros(len(pooled_BD), 0), None
        if self.hidden is None:
            outputs_BM: Tensor = self.output(pooled_BD)
            return outputs_BM, None
        hidden_BMH: Tensor = self.hidden(pooled_BD).unflatten(1, self.shape)
        dropped_BMH = self.dropout(hidden_BMH)
        return torch.einsum("bmh,mh->bm", dropped_BMH, self.weight_MH) + self.bias_M, hidden_BMH


def identity_head(num_features: int, num_ids: int, *, width: int, dropout: float) -> nn.Sequential:
    """Return Linear -> BN -> LeakyReLU -> Dropout -> Linear, or BN -> Dropout -> Linear for width 0."""
    classifier = nn.Linear(width or num_features, num_ids)
    # Near 0, as re-identification code has it: with torch's own start the embedded profile ended at a source mAP of
    # 0.32 instead of 0.74 (identity loss alone, one seed).
    nn.init.normal_(classifier.weight, std=0.001)
    nn.init.zeros_(classifier.bias)
    if width == 0:
        return nn.Sequential(nn.BatchNorm1d(num_features), nn.Dropout(dropout), classifier)
    return nn.Sequential(
        nn.Linear(num_features, width),
        nn.BatchNorm1d(width),
        nn.LeakyReLU(NEGATIVE_SLOPE),
        nn.Dropout(dropout),
        classifier,
    )


def _num_features(backbone: nn.Sequential) -> int:
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    return max(norm.num_features for norm in norms)
