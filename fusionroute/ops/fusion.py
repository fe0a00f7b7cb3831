"""How the router's and the expert's next-token distributions become one."""

from torch import Tensor


def fuse(router_logits: Tensor, expert_logits: Tensor, *, normalise: bool = True) -> Tensor:
    """Eq. (1): log π_final = log π_router + log π_expert, a product of two models.

    Args:
        router_logits, expert_logits: ``[..., vocabulary]``, raw logits or log-probabilities of any float type.
        normalise: the printed sum is not a distribution; renormalising changes neither its argmax nor its
            softmax, but makes its values log-probabilities.

    Returns:
        float32 ``[..., vocabulary]``. A token to which either model gives probability 0 stays at 0.
    """
    total = router_logits.float().log_softmax(-1) + expert_logits.float().log_softmax(-1)
    return total.log_softmax(-1) if normalise else total
