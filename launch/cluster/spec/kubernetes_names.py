"""Valid names, mount paths and resources of Kubernetes, by the rules of its API server (apimachinery, pkg/util/validation).

Each check raises ValueError with the key of the cluster file, the value and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

_DNS_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_SUBDOMAIN = rf"{_DNS_LABEL}(\.{_DNS_LABEL})*"
_LABEL_VALUE = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_QUALIFIED_NAME = rf"({_DNS_SUBDOMAIN}/)?{_LABEL_VALUE}"
_EXTENDED_RESOURCE = rf"{_DNS_SUBDOMAIN}/{_LABEL_VALUE}"
_OWN_RESOURCE = r"ephemeral-storage|hugepages-\d+[KMG]i"
_WHOLE_NUMBER = r"[1-9]\d*"
_QUANTITY = r"[1-9]\d*([kMGTPE]|[KMGTPE]i)?"
# They hold devices and /dev/shm, the pod's host names and the recipe, and the kernel's file systems.
_RESERVED_FOLDERS = ("/dev", "/etc", "/proc", "/sys")


def check_label(key: str, text: str) -> None:
    if len(text) > 63 or not re.fullmatch(_DNS_LABEL, text):
        raise ValueError(f"{key} {text!r} is not a DNS label: use small letters, digits and hyphens, at most 63")


def check_subdomain(key: str, text: str, longest: int = 253) -> None:
    if len(text) > longest or not re.fullmatch(_DNS_SUBDOMAIN, text):
        raise ValueError(
            f"{key} {text!r} is not a DNS subdomain: use small letters, digits, hyphens and dots, a letter or digit at both "
            f"ends, at most {longest}"
        )


def check_secret_key(key: str, text: str) -> None:
    if not re.fullmatch(r"[-._A-Za-z0-9]{1,253}", text):
        raise ValueError(f"{key} {text!r} is not a key of a Secret: use letters, digits, hyphens, _ and dots, at most 253")


def check_qualified(key: str, text: str) -> None:
    if not re.fullmatch(_QUALIFIED_NAME, text):
        raise ValueError(
            f"{key} holds {text!r}, which is not NAME or DOMAIN/NAME: use letters, digits, hyphens, _ and dots, at most 63"
        )


def check_label_value(key: str, text: str) -> None:
    if text and not re.fullmatch(_LABEL_VALUE, text):
        raise ValueError(
            f"{key} holds {text!r}, which is not the value of a label: use letters, digits, hyphens, _ and dots, at most 63"
        )


def check_extended_resource(key: str, name: str) -> None:
    if not re.fullmatch(_EXTENDED_RESOURCE, name):
        raise ValueError(f"{key} {name!r} is not an extended resource: write DOMAIN/NAME, as nvidia.com/gpu")


def check_resources(key: str, resources: Mapping[str, int | str]) -> None:
    """Names and amounts of resources other than CPUs and memory, which have keys of their own."""
    for name, amount in resources.items():
        if name in ("cpu", "memory"):
            raise ValueError(f"{key} holds {name}: give cpus_per_node and memory_gb_per_node instead")
        extended = re.fullmatch(_EXTENDED_RESOURCE, name)
        if not extended and not re.fullmatch(_OWN_RESOURCE, name):
            raise ValueError(f"{key} holds {name!r}: write DOMAIN/NAME, as rdma/hca, ephemeral-storage or hugepages-2Mi")
        if not re.fullmatch(_WHOLE_NUMBER if extended else _QUANTITY, str(amount)):
            expected = "a whole number" if extended else "a quantity, as 20Gi,"
            raise ValueError(f"{key} gives {amount} of {name}: give {expected} above 0")


def check_capability(key: str, name: str) -> None:
    # The API server accepts any text. The container engine puts CAP_ in front, and starts no container with an unknown name.
    if not re.fullmatch(r"(?!CAP_|ALL$)[A-Z][A-Z0-9_]*", name):
        raise ValueError(f"{key} holds {name!r}: name single capabilities, without CAP_ in front, as IPC_LOCK")


def mount_problem(path: str) -> str | None:
    """Why a claim cannot be mounted at `path`, with the remedy; None if it can."""
    parts = PurePosixPath(path)
    if not parts.is_absolute():
        return "give an absolute path"
    if ".." in parts.parts or ":" in path or path.startswith("//"):
        return "write the path out, without `..`, `:` and a second `/`"
    if len(parts.parts) == 1 or any(parts.is_relative_to(folder) for folder in _RESERVED_FOLDERS):
        return f"it would hide files that pods need; do not mount at /, or in {', '.join(_RESERVED_FOLDERS)}"
    return None
