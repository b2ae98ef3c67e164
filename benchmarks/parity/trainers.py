"""TRL's own trainers on the same model and rows: they build the dataset, the batch and the loss; only the optimizer is left out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from benchmarks.parity.ours import Found, Models, rows, shaped
from datasets import Dataset


def trl_arguments(folder: Path, **options: Any) -> dict[str, Any]:
    """Arguments of every config: a CPU, one batch of all rows, nothing written or sent."""
    return {
        "output_dir": str(folder / "trl"), "per_device_train_batch_size": 6, "use_cpu": True, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "gradient_checkpointing": False, "bf16": False, "fp16": False, "dataloader_pin_memory": False, **options,
    }  # fmt: skip


def _found(trainer: Any) -> Found:
    """Loss and gradient of the trainer's first batch, which holds all rows."""
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.train()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    return Found(loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def _wide(model: Any, dtype: torch.dtype) -> Any:
    return copy.deepcopy(model).to(dtype)


def dpo(models: Models, folder: Path, *, dtype: torch.dtype = torch.float64, **options: Any) -> Found:
    """DPOTrainer."""
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(**trl_arguments(folder, max_length=None, **options))
    data = Dataset.from_list([{name: r[name] for name in ("prompt", "chosen", "rejected")} for r in rows()])
    policy, reference = _wide(models.policy, dtype), _wide(models.reference, dtype)
    return _found(DPOTrainer(policy, reference, args=arguments, train_dataset=data, processing_class=models.tokenizer))


def kto(models: Models, folder: Path, *, dtype: torch.dtype = torch.float64, **options: Any) -> Found:
    """KTOTrainer."""
    from trl import KTOConfig, KTOTrainer

    arguments = KTOConfig(**trl_arguments(folder, max_length=None, **options))
    data = Dataset.from_list(shaped("labels", rows()))
    policy, reference = _wide(models.policy, dtype), _wide(models.reference, dtype)
    return _found(KTOTrainer(policy, reference, args=arguments, train_dataset=data, processing_class=models.tokenizer))


def reward(models: Models, folder: Path, *, dtype: torch.dtype = torch.float64, margin: bool = False, **options: Any) -> Found:
    """RewardTrainer."""
    from trl import RewardConfig, RewardTrainer

    arguments = RewardConfig(**trl_arguments(folder, max_length=None, **options))
    kept = ("margin",) if margin else ()
    joined = [
        {"chosen": r["prompt"] + r["chosen"], "rejected": r["prompt"] + r["rejected"], **{name: r[name] for name in kept}} for r in rows()
    ]
    scorer = _wide(models.scorer, dtype)
    return _found(RewardTrainer(scorer, args=arguments, train_dataset=Dataset.from_list(joined), processing_class=models.tokenizer))


def sft(models: Models, folder: Path, *, dtype: torch.dtype = torch.float64, **options: Any) -> Found:
    """SFTTrainer, on completions alone."""
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(**trl_arguments(folder, max_length=None, completion_only_loss=True, **options))
    data = Dataset.from_list(shaped("demonstrations", rows()))
    policy = _wide(models.policy, dtype)
    return _found(SFTTrainer(policy, args=arguments, train_dataset=data, processing_class=models.tokenizer))


def cpo(models: Models, folder: Path, *, dtype: torch.dtype = torch.float64, **options: Any) -> Found:
    """experimental CPOTrainer."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return _experimental(CPOTrainer, CPOConfig, models, folder, dtype, options)


def orpo(models: Models, folder: Path, *, dtype: torch.dtype = torch.float64, **options: Any) -> Found:
    """experimental ORPOTrainer."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return _experimental(ORPOTrainer, ORPOConfig, models, folder, dtype, options)


def _experimental(trainer: Any, config: Any, models: Models, folder: Path, dtype: torch.dtype, options: dict[str, Any]) -> Found:
    arguments = config(**trl_arguments(folder, max_length=100, max_completion_length=50, **options))
    data = Dataset.from_list([{name: r[name] for name in ("prompt", "chosen", "rejected")} for r in rows()])
    return _found(trainer(_wide(models.policy, dtype), args=arguments, train_dataset=data, processing_class=models.tokenizer))
