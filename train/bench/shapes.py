"""The benchmark's shapes, and the work of a step of each in theory.

B sequences have T tokens each; other letters are ModelCfg's.
"""

from functools import partial

from pydantic import Field

from niels_gpt.config import Cfg, ModelCfg


class Shape(Cfg):
    """A model, and the microbatches of its step."""

    model: ModelCfg
    B: int = Field(ge=1)
    accum_steps: int = Field(ge=1)

    @property
    def tokens(self) -> int:
        """Tokens in an optimizer step."""
        return self.B * self.accum_steps * self.model.T

    @property
    def flops(self) -> int:
        """Floating-point operations of a step's matrix products, forward and backward, recomputation not counted.

        A token takes 6 for each weight of a matrix, with the head's V x C and without the embedding's look-up,
        and 6 L T C for the products of attention, half of which are masked away.
        """
        m = self.model
        weights = m.L * (4 * m.C * m.C + 3 * m.C * m.d_ff) + m.V * m.C
        return self.tokens * (6 * weights + 6 * m.L * m.T * m.C)

    @property
    def flops_again(self) -> int:
        """Operations that recomputation adds: each block again, without its last product, which nothing needs."""
        m = self.model
        weights = 4 * m.C * m.C + 2 * m.C * m.d_ff
        return self.tokens * m.L * (2 * weights + 2 * m.T * m.C)


# The engines in the race and the numbers in docs/performance.md have a tied head.
tied = partial(ModelCfg, tie_embeddings=True)
SHAPES = {
    "tiny": Shape(model=tied(V=4096, T=256, C=128, L=4, H=4, d_ff=384), B=4, accum_steps=2),
    "small": Shape(model=tied(V=4096, T=128, C=256, L=4, H=4, d_ff=512), B=16, accum_steps=2),
    "base": Shape(model=tied(V=16384, T=512, C=512, L=8, H=8, d_ff=1536), B=4, accum_steps=2),
    "middle": Shape(model=tied(V=8192, T=512, C=256, L=4, H=4, d_ff=768), B=4, accum_steps=1),
    "toy": Shape(model=tied(V=256, T=16, C=16, L=1, H=2, d_ff=32), B=2, accum_steps=2),
}
