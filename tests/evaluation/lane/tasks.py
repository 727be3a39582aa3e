"""A multiple-choice task about clips, as files that lmms-eval reads; it is offline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from tests.cli import clips

NAME = "fastvid_clips"
PROMPTS = {"default": "Look. ", "llava_hf": "Look at the film. ", "qwen2_5_vl": "Watch. ", "llava_vid": "See. "}
"""How a prompt begins, by name of the model."""
QUESTION = "What is shown?"
_OPTIONS = ["a street", "a room", "a field"]
_YAML = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {documents}
task: {name}
test_split: test
output_type: generate_until
doc_to_visual: !function task_functions.doc_to_visual
doc_to_text: !function task_functions.doc_to_text
doc_to_target: answer
process_results: !function task_functions.process_results
generation_kwargs:
  max_new_tokens: 12
  temperature: 0
  do_sample: false
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
lmms_eval_specific_kwargs:
{prompts}
"""


def write(directory: Path, paths: list[Path], kind: str = "video") -> Path:
    """Write the task's folder, for `--include_path`, with a question about each path."""
    documents = directory / "documents.jsonl"
    rows = [
        {"path": str(path), "kind": kind, "question": QUESTION, "options": _OPTIONS, "answer": "ABC"[number % 3]}
        for number, path in enumerate(paths)
    ]
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = "\n".join(f"  {model}:\n    pre_prompt: '{text}'" for model, text in PROMPTS.items())
    folder = directory / "tasks"
    folder.mkdir()
    (folder / f"{NAME}.yaml").write_text(_YAML.format(documents=documents, name=NAME, prompts=prompts))
    shutil.copy(Path(__file__).with_name("task_functions.py"), folder)
    return folder


def write_clips(directory: Path) -> list[Path]:
    """Three clips of two shots."""
    return [
        clips.write_clip(directory / f"clip{number}.mp4", clips.pan(number, 10) + clips.static(number + 10, 8))
        for number in range(3)
    ]


def write_picture(directory: Path) -> Path:
    path = directory / "picture.png"
    Image.fromarray(clips.scenery(0)).save(path)
    return path
