"""The public names of the package."""

import subprocess
import sys

import pytest

import sftmix


def test_every_public_name_is_found_under_its_own_name():
    for name in sftmix.__all__:
        assert getattr(sftmix, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'sftmix' has no attribute 'nosuch'"):
        _ = sftmix.nosuch


def test_the_package_imports_no_heavy_library_before_a_name_is_used():
    code = "import sys, sftmix; sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
