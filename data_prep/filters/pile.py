"""The 22 components of The Pile and its official mixture (Gao et al. 2020, arXiv 2101.00027, table 1)."""

from typing import NamedTuple


class Component(NamedTuple):
    """One component. `epochs`: how often the official mixture reads it; `weight`: its share of the mixture's bytes in percent;
    `available`: whether it can still be downloaded (monology/pile-uncopyrighted on the Hugging Face hub)."""

    epochs: float
    weight: float
    available: bool = True


COMPONENTS = {
    "Pile-CC": Component(1, 18.11),
    "PubMed Central": Component(2, 14.40),
    "Books3": Component(1.5, 12.07, available=False),
    "OpenWebText2": Component(2, 10.01, available=False),
    "ArXiv": Component(2, 8.96),
    "Github": Component(1, 7.59),
    "FreeLaw": Component(1.5, 6.12),
    "StackExchange": Component(2, 5.13),
    "USPTO Backgrounds": Component(2, 3.65),
    "PubMed Abstracts": Component(2, 3.07),
    "Gutenberg (PG-19)": Component(2.5, 2.17),
    "OpenSubtitles": Component(1.5, 1.55, available=False),
    "Wikipedia (en)": Component(3, 1.53),
    "DM Mathematics": Component(2, 1.24),
    "Ubuntu IRC": Component(2, 0.88),
    "BookCorpus2": Component(1.5, 0.75, available=False),
    "EuroParl": Component(2, 0.73),
    "HackerNews": Component(2, 0.62),
    "YoutubeSubtitles": Component(2, 0.60, available=False),
    "PhilPapers": Component(2, 0.38),
    "NIH ExPorter": Component(2, 0.30),
    "Enron Emails": Component(2, 0.14),
}
EPOCHS = {name: component.epochs for name, component in COMPONENTS.items()}
WEIGHTS = {name: component.weight for name, component in COMPONENTS.items()}
