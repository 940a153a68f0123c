"""The files of a finished run: the checkpoint, its learning curves and its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nopad.model.checkpoint.load import Checkpoint
from nopad.model.checkpoint.read_config import LENGTHS
from nopad.model.checkpoint.save import config_json, write_checkpoint
from nopad.model.checkpoint.save_pooling import write_pooling
from nopad.model.checkpoint.tokenizer import save_tokenizer
from nopad.runtime.atomic import sha256_of
from nopad.training.curves import curves_page, curves_svg
from nopad.training.lora import Adapter
from nopad.training.model_card import model_card, of_sweep
from nopad.training.outcome import Outcome
from nopad.training.run_folder import ADAPTER, CARD, CURVES, CURVES_PAGE, RECORD


def write_output(
    folder: Path, checkpoint: Checkpoint, tokenizer: Any, outcome: Outcome, adapter: Adapter | None
) -> None:
    """Write everything into an existing, empty folder; the adapter, which its weights contain, into one inside it."""
    architecture, names = checkpoint.config.architecture, outcome.data.task.metric_names
    figures = ", ".join(f"{name} {value:.4f}" for name, value in outcome.metrics.items())
    lead = f"Kept: epoch {outcome.epoch:.4g}, {figures}."
    record = outcome.record()
    texts = {
        CURVES: curves_svg(outcome.history, names),
        CURVES_PAGE: curves_page(outcome.history, names, title=outcome.name, lead=lead, record=record),
        LENGTHS: outcome.lengths.histogram(),
        CARD: model_card(outcome, architecture=architecture, max_length=tokenizer.model_max_length, curves=CURVES),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    record["card_sha256"] = sha256_of(folder / CARD)  # a card that somebody has edited is never replaced
    write_checkpoint(checkpoint.encoder, {**checkpoint.raw_config, RECORD: record}, folder)
    save_tokenizer(tokenizer, folder)
    folders = [folder]
    if adapter is not None:
        adapter.write(folder / ADAPTER, config_json(checkpoint.raw_config, checkpoint.config))
        save_tokenizer(tokenizer, folder / ADAPTER)
        folders.append(folder / ADAPTER)
    if checkpoint.config.task == "embeddings":
        task = outcome.data.task
        for place in folders:
            write_pooling(
                checkpoint.config, place, prompts=task.prompts or {}, default_prompt_name=task.default_prompt_name
            )


def add_sweep(folder: Path, trials: int) -> None:
    """Say in the card and the record of a checkpoint folder that it is the best of so many trials."""
    card, config = folder / CARD, folder / "config.json"
    card.write_text(of_sweep(card.read_text("utf-8"), trials), encoding="utf-8")
    content = json.loads(config.read_text("utf-8"))
    content[RECORD] |= {"trials": trials, "card_sha256": sha256_of(card)}
    config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
