"""Jobs that make a folder of a test's own."""

import pytest

from sftmix.artifacts.artifact import Artifact
from sftmix.sweep.jobs import Job


@pytest.fixture
def job(tmp_path):
    """A job of a title, whose program is given the folder that it makes and some words."""

    def made(title, *words, needs=()):
        artifact = Artifact(tmp_path, title, {"title": title})
        return Job(title, artifact, (str(artifact.folder), *words), {}, list(needs))

    return made
