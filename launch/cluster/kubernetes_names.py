"""What Kubernetes takes for a name, a mount and a resource, as its API server checks it (apimachinery, pkg/util/validation).

Each check raises ValueError with the key that a cluster file says it by, the value and the remedy.
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
# Devices and /dev/shm, the pod's host names and the recipe, and what the kernel shows.
_TAKEN_FOLDERS = ("/dev", "/etc", "/proc", "/sys")


def check_label(key: str, text: str) -> None:
    if len(text) > 63 or not re.fullmatch(_DNS_LABEL, text):
        raise ValueError(f"{key} {text!r} is no DNS label: small letters, digits and hyphens, at most 63")


def check_subdomain(key: str, text: str, longest: int = 253) -> None:
    if len(text) > longest or not re.fullmatch(_DNS_SUBDOMAIN, text):
        raise ValueError(
            f"{key} {text!r} is no DNS subdomain: small letters, digits, hyphens and dots, a letter or digit at both ends, "
            f"at most {longest}"
        )


def check_secret_key(key: str, text: str) -> None:
    if not re.fullmatch(r"[-._A-Za-z0-9]{1,253}", text):
        raise ValueError(f"{key} {text!r} is in no Secret: letters, digits, hyphens, _ and dots, at most 253")


def check_qualified(key: str, text: str) -> None:
    if not re.fullmatch(_QUALIFIED_NAME, text):
        raise ValueError(f"{key} holds {text!r}, no NAME or DOMAIN/NAME of letters, digits, hyphens, _ and dots, at most 63")


def check_label_value(key: str, text: str) -> None:
    if text and not re.fullmatch(_LABEL_VALUE, text):
        raise ValueError(f"{key} holds {text!r}, no value of a label: letters, digits, hyphens, _ and dots, at most 63")


def check_extended_resource(key: str, name: str) -> None:
    if not re.fullmatch(_EXTENDED_RESOURCE, name):
        raise ValueError(f"{key} {name!r} is no extended resource: write DOMAIN/NAME, as nvidia.com/gpu")


def check_resources(key: str, resources: Mapping[str, int | str]) -> None:
    """Names and amounts beside CPUs and memory, which are said elsewhere."""
    for name, amount in resources.items():
        if name in ("cpu", "memory"):
            raise ValueError(f"{key} holds {name}: that is said by cpus_per_node and memory_gb_per_node")
        extended = re.fullmatch(_EXTENDED_RESOURCE, name)
        if not extended and not re.fullmatch(_OWN_RESOURCE, name):
            raise ValueError(f"{key} holds {name!r}: write DOMAIN/NAME, as rdma/hca, ephemeral-storage or hugepages-2Mi")
        if not re.fullmatch(_WHOLE_NUMBER if extended else _QUANTITY, str(amount)):
            meaning = "of which a pod has a whole number" if extended else "which is a quantity, as 20Gi"
            raise ValueError(f"{key} gives {amount} of {name}, {meaning}: give one above 0")


def check_capability(key: str, name: str) -> None:
    # The API server takes any text; a container engine puts CAP_ in front and starts nothing whose name it does not know.
    if not re.fullmatch(r"(?!CAP_|ALL$)[A-Z][A-Z0-9_]*", name):
        raise ValueError(f"{key} holds {name!r}: name single ones, without CAP_ in front, as IPC_LOCK")


def mount_problem(path: str) -> str | None:
    """Why no claim can be mounted at `path`, with the remedy; None where one can."""
    parts = PurePosixPath(path)
    if not parts.is_absolute():
        return "give an absolute path"
    if ".." in parts.parts or ":" in path or path.startswith("//"):
        return "write the path out, without `..`, `:` and a second `/`"
    if len(parts.parts) == 1 or any(parts.is_relative_to(taken) for taken in _TAKEN_FOLDERS):
        return f"it would hide what pods need there; not at /, nor within {', '.join(_TAKEN_FOLDERS)}"
    return None
