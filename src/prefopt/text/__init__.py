"""Text to token ids and scored mask: the only place that touches a tokenizer's chat template."""

from prefopt.text.chat import Renderer

__all__ = ["Renderer"]
