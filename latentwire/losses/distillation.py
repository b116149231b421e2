"""What a student learns from a teacher at the same positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def logit_kd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) in nats a position, of logits (n, vocabulary) at a temperature, times its square.

    Hinton et al. 2015, arXiv 1503.02531; the square keeps gradients as large as at temperature 1.
    """
    log_p, log_q = (torch.log_softmax(logits / temperature, -1) for logits in (student, teacher))
    return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean") * temperature**2


def state_kd(student: Sequence[Tensor], teacher: Sequence[Tensor], kind: str = "mse") -> Tensor:
    """Distance of hidden states, one (n, hidden_size) a layer, meaned over layers.

    mse: squared error as a share of the teacher's mean square, so that layers count alike (after FitNets, Romero et
    al. 2014, arXiv 1412.6550). cosine: 1 - cosine similarity (as in DistilBERT, Sanh et al. 2019, arXiv 1910.01108).
    """
    distances = []
    for own, other in zip(student, teacher, strict=True):
        own, other = own.float(), other.float()
        if kind == "mse":
            distances.append((own - other).pow(2).mean() / other.pow(2).mean())
        else:
            distances.append(1.0 - F.cosine_similarity(own, other, dim=-1).mean())
    return torch.stack(distances).mean()
