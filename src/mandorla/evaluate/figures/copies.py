"""Whether generated tuples are copies of training tuples."""

import numpy as np

from mandorla.evaluate.audit import (
    LEVEL,
    NEXT,
    chance_of_as_many,
    effective_number,
    least_noticed,
    suspicious,
    usual_share,
)
from mandorla.evaluate.figures.subject import Subject
from mandorla.evaluate.record import Record


def copy_figures(subject: Subject) -> list[Record]:
    """Measure how close generated tuples lie to training tuples, beside how close unseen real ones do."""
    found = subject.audit
    if found is None:
        return []
    texts = {
        "distance": "whose distance to the nearest training tuple",
        "ratio": f"whose distance to the nearest training tuple, divided by the mean of those to the next {NEXT},",
    }
    records = []

    patients = len(np.unique(found.whose))
    several = patients < len(found.whose)

    def add(name: str, scores: np.ndarray, definition: str, **reference: float | None) -> None:
        """Add a share that is the lower the better."""
        records.append(Record.of(name, scores, definition, "lower", **reference, seed=subject.seed))

    for space, where in (("pixels", "in pixels"), ("features", "in the space of features 'random'")):
        made, real = found.made[space], found.held_out[space]
        for name, text in texts.items():
            ours, usual = getattr(made, name), getattr(real, name)
            counted = "of independent tuples"
            if several:
                number = effective_number(usual, found.whose)
                counted = f"the test ones are of {patients} patients and count as {number:.0f} independent ones"
            add(
                f"copies/{name} in {space}",
                suspicious(ours, usual),
                f"Share of generated tuples {text} is at most the first percentile of {len(usual)} real test ones"
                f" {where}; ceiling: the share of these, each beside those of others: about .01 of many; p: of as many,"
                f" or more, by chance, if generated tuples are like the test ones (hypergeometric; {counted}).",
                ceiling=usual_share(usual, found.whose),
                p=chance_of_as_many(ours, usual, found.whose),
            )
        noticed = least_noticed(len(made.ratio), real.ratio, found.whose)
        if noticed is not None:
            text = f"Least share of copies (by ratio, {where}) that this audit tells from chance (p at most {LEVEL:g})"
            text += " beside so few real test ones."
            records.append(
                Record(f"copies/noticed in {space}", noticed, 0.0, len(made.ratio), text, "lower", seed=subject.seed)
            )
        add(
            f"copies/nearer in {space}",
            found.nearer[space],
            f"Share of generated tuples that are nearer, {where}, to {found.compared} training tuples than to as many"
            f" test ones{', of whole patients' if several else ''}; chance: half; ± is of the generated tuples, not of"
            " which real ones they are compared with.",
            chance=0.5,
        )
    return records
