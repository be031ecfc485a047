"""A folder with two tasks of lm-eval: multiple choice, and generation with two filters."""

import json
import random

import pytest
import yaml

ANIMALS = "cat dog bird fish cow pig hen fox bear frog".split()


def task_of_rows(folder, name, rows, **config):
    """Write a task whose first ten rows are the test; the others may be solved examples."""
    files = {}
    for part, of_part in (("test", rows[:10]), ("train", rows[10:])):
        files[part] = str(folder / f"{name}-{part}.jsonl")
        (folder / f"{name}-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_part))
    known = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    known |= {"fewshot_split": "train", "metadata": {"version": 1.0}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**known, **config}))


@pytest.fixture
def write_task():
    return task_of_rows


@pytest.fixture
def task_folder(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    draws = random.Random(3)
    options = [draws.sample(ANIMALS, 4) for _ in range(14)]
    task_of_rows(
        folder,
        "animals",
        [{"story": "She saw a", "options": o, "answer": k % 4} for k, o in enumerate(options)],
        output_type="multiple_choice",
        doc_to_text="story",
        doc_to_choice="options",
        doc_to_target="answer",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    places = ["park", "store", "house"] * 5
    take = {"function": "take_first"}
    task_of_rows(
        folder,
        "places",
        [
            {"start": f"One day, a {a} went to the", "word": w}
            for a, w in zip(ANIMALS + ANIMALS[:4], places, strict=False)
        ],
        output_type="generate_until",
        doc_to_text="start",
        doc_to_target="word",
        generation_kwargs={"until": ["."], "max_gen_toks": 8},
        filter_list=[
            {"name": "word", "filter": [{"function": "regex", "regex_pattern": r"(\w+)"}, take]},
            {"name": "whole", "filter": [take]},
        ],
        metric_list=[
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
            {"metric": "ter", "aggregation": "ter", "higher_is_better": False},
        ],
    )
    return folder
