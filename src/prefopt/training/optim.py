"""From gradients to new weights: AdamW or Muon on fp32 weights, clipping, warm-up and decay of the learning rate.

In bf16 the model computes in bf16 while the weights that learn are kept here in fp32 (`MasterWeights`): an update smaller than
2^-9 of a weight would be rounded away in bf16, and at the learning rates of preference optimization nearly all are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from prefopt.errors import OptionError, TrainingError
from prefopt.model.split import full, like
from prefopt.settings import TrainSettings

COSINE_FLOOR = 0.1
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
HEADS = frozenset({"lm_head", "embed_out", "score", "classifier"})


def schedule(settings: TrainSettings, total_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at step 0, 1, ..., total_steps - 1.

    With w steps of warm-up and u = (step - w) / (total_steps - w):

        step < w   (step + 1) / w
        constant   1
        linear     1 - u                              (0 is reached after the last step)
        cosine     0.1 + 0.9 * (1 + cos(pi u)) / 2    (a tenth remains)

    `settings.warmup` counts steps, or is a share of all steps when below 1 (rounded).

    Raises:
        OptionError: if the warm-up is negative or longer than the run.
    """
    warmup = round(settings.warmup * total_steps) if settings.warmup < 1 else round(settings.warmup)
    if not 0 <= warmup <= total_steps:
        raise OptionError(
            f"a warm-up of {warmup} steps does not fit a run of {total_steps}",
            where="train.warmup",
            fix="give fewer steps, or a share of the run below 1 (train.warmup=0.05)",
        )

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, total_steps - warmup)
        if settings.schedule == "linear":
            return max(0.0, 1.0 - progress)
        if settings.schedule == "cosine":
            return COSINE_FLOOR + (1 - COSINE_FLOOR) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return 1.0

    return factor


def hidden_matrices(model: nn.Module) -> frozenset[str]:
    """Names of the parameters Muon may take: 2-D weights between the embedding and the head, adapters of such weights included."""
    embeddings = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    output = getattr(model, "get_output_embeddings", None)
    head = output() if callable(output) else None
    outside = embeddings | (set(head.parameters()) if isinstance(head, nn.Module) else set())
    return frozenset(
        _plain(name)
        for name, p in model.named_parameters()
        if p.ndim == 2 and p not in outside and "lora_embedding" not in name and HEADS.isdisjoint(name.split("."))
    )


def build_optimizer(
    named_parameters: Iterable[tuple[str, Tensor]],
    settings: TrainSettings,
    learning_rate: float,
    hidden: frozenset[str] = frozenset(),
) -> list[torch.optim.Optimizer]:
    """The optimizers that share the parameters: AdamW alone, or Muon for the `hidden` matrices and AdamW for the rest.

    AdamW (arXiv 1711.05101, algorithm 2) decays matrices only, never norms and biases. Muon (K. Jordan et al. 2024,
    kellerjordan.github.io/posts/muon) steps along the momentum made orthogonal by five Newton-Schulz iterations; its updates are
    scaled by 0.2 sqrt(max(rows, columns)) (arXiv 2502.16982, eq. 4) to the size of AdamW's, so one learning rate and one weight decay
    serve both. Fused experts of a mixture (3-D) stay with AdamW.
    """
    named = list(named_parameters)
    muon = [p for name, p in named if name in hidden] if settings.optimizer == "muon" else []
    rest = [p for name, p in named if not (muon and name in hidden)]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        fused = all(p.device.type in FUSED_DEVICES for p in rest)
        optimizers.append(torch.optim.AdamW(groups, lr=learning_rate, betas=settings.betas, fused=fused))
    if muon:
        decay = settings.weight_decay
        optimizers.append(torch.optim.Muon(muon, lr=learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


class MasterWeights:
    """The trainable weights in fp32 and their gradients, whatever the model computes in.

    fp32: the model's own parameters, so accumulation and publication have nothing to do; half-precision ones are widened, those that do
    not learn too, as an adapter and the layer it is added to compute together.
    bf16: fp32 copies taken before every parameter of the model is rounded to bf16; buffers (rotary frequencies) stay as they are.
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        self.parameters = {_plain(name): p for name, p in model.named_parameters() if p.requires_grad}
        self.separate = precision == "bf16"
        if self.separate:
            self.masters: dict[str, Tensor] = {n: p.detach().to(torch.float32, copy=True) for n, p in self.parameters.items()}
            _cast((p for p in model.parameters() if p.is_floating_point()), torch.bfloat16)
        else:
            _cast((p for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)), torch.float32)
            self.masters = dict(self.parameters)

    def accumulate(self) -> None:
        """Add the gradients of one backward pass to the fp32 sums and clear them."""
        if not self.separate:
            return
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            master = self.masters[name]
            master.grad = parameter.grad.float() if master.grad is None else master.grad.add_(parameter.grad)
            parameter.grad = None

    def publish(self) -> None:
        """Round the masters into the model's parameters."""
        if self.separate:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self.masters[name])


class Optimizer:
    """One step of the optimization, and everything of it that a checkpoint must hold.

    Args:
        model: only parameters that require a gradient are trained; in bf16 all of them are rounded to bf16 here.
        settings: optimizer, betas, weight_decay and grad_clip are read.
        learning_rate: the peak; `step` multiplies it by the schedule's factor.
        precision: what the model computes in.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, learning_rate: float, precision: str = "fp32") -> None:
        self.learning_rate, self.grad_clip = learning_rate, settings.grad_clip
        self.weights = MasterWeights(model, precision)
        self.optimizers = build_optimizer(self.weights.masters.items(), settings, learning_rate, hidden_matrices(model))

    def accumulate(self) -> None:
        """Call after every backward pass."""
        self.weights.accumulate()

    def step(self, lr_factor: float = 1.0) -> float:
        """Clip, update, clear the gradients; the gradient's norm before clipping.

        A norm that is not finite is returned as it is and nothing is updated: the weights stay those of the last good step.
        """
        masters = list(self.weights.masters.values())
        gradients = [p.grad for p in masters if p.grad is not None]
        norm = full(torch.nn.utils.get_total_norm(gradients))
        if torch.isfinite(norm):
            if self.grad_clip > 0:
                torch.nn.utils.clip_grads_with_norm_(masters, self.grad_clip, norm)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * lr_factor
                optimizer.step()
            self.weights.publish()
        for master in masters:
            master.grad = None
        return float(norm)

    def state(self) -> dict[str, Tensor]:
        """Trained weights (fp32) and optimizer state by "slot/parameter" ("weight/...", "exp_avg/..."): the live tensors, not copies."""
        names = {master: name for name, master in self.weights.masters.items()}
        flat = {f"weight/{name}": master.detach() for name, master in self.weights.masters.items()}
        for optimizer in self.optimizers:
            for master, slots in optimizer.state.items():
                flat |= {f"{slot}/{names[master]}": tensor for slot, tensor in slots.items()}
        return flat

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on exactly where `state` was taken.

        Raises:
            TrainingError: if the state belongs to other parameters, shapes or another optimizer.
        """
        slots = _by_parameter(state)
        self._check(slots)
        with torch.no_grad():
            for name, master in self.weights.masters.items():
                master.copy_(like(slots[name].pop("weight"), master))
        self.weights.publish()
        names = {master: name for name, master in self.weights.masters.items()}
        for optimizer in self.optimizers:
            order = [p for group in optimizer.param_groups for p in group["params"]]
            saved = {i: {slot: like(t.clone(), p) for slot, t in slots[names[p]].items()} for i, p in enumerate(order) if slots[names[p]]}
            optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})

    def _check(self, slots: Mapping[str, Mapping[str, Tensor]]) -> None:
        fix = "resume with the model, lora and train.optimizer of the run that wrote it, or start in a new folder"
        if odd := sorted(slots.keys() ^ self.weights.masters.keys()):
            raise TrainingError(f"the checkpoint and the model differ in {len(odd)} parameters, '{odd[0]}' first", fix=fix)
        for optimizer in self.optimizers:
            expected = {"momentum_buffer"} if isinstance(optimizer, torch.optim.Muon) else {"step", "exp_avg", "exp_avg_sq"}
            members = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for name, master in self.weights.masters.items():
                if id(master) not in members:
                    continue
                found = slots[name]
                if found["weight"].shape != master.shape:
                    raise TrainingError(f"'{name}' is {list(found['weight'].shape)} in the checkpoint, {list(master.shape)} here", fix=fix)
                if found.keys() - {"weight"} not in (set(), expected):
                    raise TrainingError(f"'{name}' was trained by another optimizer: state {sorted(found)}", fix=fix)


def _by_parameter(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{"slot/name": tensor} as {name: {slot: tensor}}."""
    slots: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        slot, name = key.split("/", 1)
        slots.setdefault(name, {})[slot] = tensor
    return slots


def _cast(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


def _plain(name: str) -> str:
    """A parameter's name without the prefix torch.compile adds, so that a run may resume compiled or not."""
    return name.replace("_orig_mod.", "")
