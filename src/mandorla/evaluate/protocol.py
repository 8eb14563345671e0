"""How everything was measured, in words with the numbers of this evaluation: the last part of the report."""

from collections.abc import Collection

from mandorla.evaluate.audit import LARGEST, LEVEL
from mandorla.evaluate.features import JUDGE
from mandorla.evaluate.figures.coherence import judged_rows
from mandorla.evaluate.figures.fidelity import LEAST, num_compared
from mandorla.evaluate.figures.separation import DONORS, MOST
from mandorla.evaluate.figures.subject import JUDGED, Subject
from mandorla.evaluate.images import FOREGROUND, STEPS
from mandorla.evaluate.information import MOST as COMPONENTS
from mandorla.evaluate.probes import HIDDEN
from mandorla.evaluate.record import PARTS
from mandorla.evaluate.settings import Suite

_ALWAYS = (
    "All figures are of test samples that took no part in training, unless they say otherwise. Codes are posterior"
    " means. ± is one standard error over the n samples of this run; that of a share of 0 or 1 is 0, though the truth"
    " may be some 3 / n away. Where several samples are one patient's, they are not independent: then n counts"
    " patients, ± is of the sums over each, and whole patients are permuted, resampled and left out. Figures stay means"
    " over samples; translations and reconstructions alone are averaged per patient first, sd is the standard deviation"
    " between these. The copy audit counts generated tuples. Tuples that data compose anew of the same images"
    " (polydigits, PolyMNIST) count as independent: how a figure would be of other images is not in their ±."
)
_JUDGES = (
    "The judges are small networks, one per modality, convolutional but for plain vectors, trained for {steps} steps of"
    " {batch} labelled images of the training part and used both as ceiling and to judge what is generated. A ceiling"
    " below 1 is theirs: a better judge would raise both sides, and generated images that are plainer than real ones"
    " may score above it."
)
_PROBES = (
    " Probes are fitted on {train} training samples, features standardised, and scored on {test} test samples: logistic"
    " regression, of numbers ridge regression, and a network with {hidden} hidden units, which finds what a straight"
    " line does not. Of classes called 'faint' and 'above noise' features are whitened. The ceiling of numbers is a"
    " network like a judge; where codes have many numbers a straight line may pass it."
)
_SUITES: dict[Suite, str] = {
    "disentanglement": "Disentanglement.{probes} Without labels: retrieval: by the shared part of one modality that of"
    " another is looked for among those of {candidates} test samples, by cosine; separation: {test} test samples are"
    " decoded, each with the private part of another, and read again; information: I(c; u), u drawn from q(u | x, c),"
    " is estimated from canonical correlations on {train} training samples, if these are more than twice as many as"
    " numbers in c and u, and by a critic trained on those and measured on {candidates} test samples (InfoNCE), each"
    " beside what it gives for permuted pairs, codes of more than {components} numbers by {components} principal"
    " components at most; explained: {translated} test samples are decoded from c with the u of {donors} others, and"
    " the other way round, and the mean of these is compared with x. Samples that lack what is asked of them do not"
    " count: n says how many do.",
    "coherence": "Coherence. Self and cross coherence draw the private part from p(private | shared) for {coherent}"
    " test samples, with the shared part read from one view or from several random ones; swaps give each sample the"
    " private parts of another; agreement is counted on {generated} jointly generated tuples, its control on tuples"
    " whose views are decoded with the shared parts of different tuples.",
    "fidelity": "Fidelity. {fidelity} generated tuples, as many training samples (the ceiling) and as many training"
    " samples encoded and decoded are compared with as many test samples, in the spaces of features {spaces}.{judge}"
    " 'random' is a network like a judge with random weights of a fixed seed, averaged over space. Figures of"
    " different spaces or different numbers of samples cannot be compared. Fréchet distance from the eigenvalues of"
    " S^1/2 S' S^1/2; kernel distance with (x.y / F + 1)^3, unbiased; ± by leaving out one of {parts} parts, or of"
    " fewer, of the generated and of the real samples in turn, whole patients where they are known (jackknife); n"
    " counts the real ones, or their patients; of a mean over modalities ± is the mean of theirs, n the least."
    " Precision and density above their ceiling say that samples keep to where real ones are densest, as blurred or"
    " uniform ones do: read them beside recall and coverage. Modalities of one size are compared within a tuple:"
    " normalised mutual information of {intensities} steps of intensity, and the correlation of Sobel magnitudes,"
    " whatever their strength.",
    "translation": "Translation. {samples} samples of each of {translated} test samples on every route. PSNR, SSIM and"
    " MAE are of images clipped to [0, 1], computed per sample (per patient where samples have one) and then averaged."
    " The mean of samples is the better guess and the blurrier image; a single sample is what a user sees. Foreground"
    " is where the truth is above {foreground:g}.",
    "audit": "Copy audit. {generated} generated tuples are compared with {searched} of the training set, in pixels"
    " (images averaged down to at most {largest} a side) and in the features 'random'. Usual is what unseen test"
    " samples show; blurred samples lie close to everything, so read a distance beside its ratio. 'mandorla audit'"
    " fails where the share by ratio is above its threshold and its p at most {level:g}, in pixels or in features: of"
    " models whose tuples are like unseen ones one in {one_in:.0f} fails at most, however few the test tuples are; but"
    " few of them cannot show few copies: see what was to be noticed. Tuples unlike any real one, as of a short"
    " training, may fail too. Test tuples of one patient count as fewer, by how alike their figures are (design"
    " effect, intraclass correlation).",
}
_FIXED = {  # numbers in these texts that no setting changes
    "hidden": HIDDEN,
    "components": COMPONENTS,
    "donors": DONORS,
    "parts": PARTS,
    "intensities": STEPS,
    "foreground": FOREGROUND,
    "largest": LARGEST,
    "level": LEVEL,
    "one_in": 1 / (2 * LEVEL),
}


def protocol(subject: Subject, measured: Collection[str]) -> list[str]:
    """Return paragraphs on what was done and what was left out; `measured` are the groups of figures that there are."""
    settings = subject.settings
    suites = [suite for suite in settings.suites if _GROUPS[suite] & set(measured)]
    told = [suite for suite in _SUITES if suite in suites]
    spaces = list(subject.spaces[0]) if "fidelity" in suites else []
    test = min(settings.num_test, len(subject.data.test))
    numbers = _FIXED | {
        "steps": settings.judge_steps,
        "batch": settings.judge_batch_size,
        "train": min(settings.num_train, len(subject.data.train)),
        "test": test,
        "candidates": min(test, MOST),
        "generated": settings.num_generated,
        "coherent": len(judged_rows(subject)) if "coherence" in suites else 0,
        "fidelity": num_compared(subject),
        "samples": settings.num_samples,
        "translated": min(settings.num_translated, len(subject.data.test)),
        "searched": subject.audit.searched if "audit" in suites and subject.audit else 0,
        "spaces": ", ".join(f"'{name}'" for name in spaces),
    }
    texts = [_ALWAYS, *([_JUDGES] if subject.judges else []), *(_SUITES[suite] for suite in told)]
    probed = "disentanglement" in suites and (subject.judges or subject.codes.quantities)
    numbers["probes"] = _PROBES.format(**numbers) if probed else ""
    numbers["judge"] = " 'judge' is the last layer of the judges, averaged over space." if JUDGE in spaces else ""
    left_out = _left_out(subject, measured)
    return [text.format(**numbers) for text in texts] + [_drawn(subject)] + left_out + _borrowed(subject)


_CODES = ("ceiling", "shared", "private", "lesion", "separation", "retrieval", "information", "explained")
_GROUPS: dict[Suite, set[str]] = {  # of the figures of a suite, and of no other
    "disentanglement": set(_CODES),
    "coherence": {"coherence", "swap", "joint"},
    "fidelity": {"fidelity"},
    "translation": {"translation"},
    "audit": {"copies"},
}
_UNMEASURED: tuple[tuple[Suite, str, str, str], ...] = (
    ("disentanglement", "separation", "c and u read again after a swap", "too few test samples have all modalities"),
    ("disentanglement", "retrieval", "retrieval", "too few test samples have all modalities"),
    ("disentanglement", "information", "I(c; u)", "too few samples have what it takes"),
    ("disentanglement", "explained", "what c and u explain", "too few test samples have all modalities"),
    ("fidelity", "fidelity", "fidelity", f"it takes {LEAST} test samples at least, and as many generated ones"),
    ("translation", "translation", "translation", "no test sample has both modalities of a route"),
    ("audit", "copies", "the copy audit", "no sample of this data has all modalities"),
)


def _drawn(subject: Subject) -> str:
    """Say how samples were drawn and images made."""
    model = subject.model
    if not model.draws:
        return "Nothing is drawn: stage 2 is not trained."
    text = f"Latents are drawn by {model.sampling.steps} steps of the sampler '{model.sampling.sampler}'"
    for name in ("guidance", "autoguidance"):
        weight = getattr(model.sampling, name)
        text += f", {name} {weight:g} from time {model.sampling.guided_from:g} on" if weight != 1 else ""
    if not (model.refiner and model.refining.steps):
        return f"{text}; images are what stage 1 decodes of them."
    how = model.refining
    return (
        f"{text}; images are what stage 1 decodes of them and the refiner adds detail to ({how.steps} steps,"
        f" temperature {how.temperature:g}, guidance {how.guidance:g}), but for reconstruction and explained variance:"
        " those are of images without it."
    )


def _left_out(subject: Subject, measured: Collection[str]) -> list[str]:
    settings, suites = subject.settings, set(subject.settings.suites)
    judged = {factor for judge in subject.judges.values() for factor in judge.heads}
    needs = {
        settings.label: (JUDGED, "what a class label is needed for (ceiling, probes, coherence)"),
        settings.lesion: ({"disentanglement"}, "the lesion test"),
    }
    notes = [
        f"Left out: {what}; this data has no label '{factor}' with classes that training and test samples have."
        for factor, (suite, what) in needs.items()
        if suite & suites and factor not in judged
    ]
    names = [modality.name for modality in subject.model.modalities]
    if "disentanglement" in suites and settings.lesion in judged and settings.lesion_modality not in names:
        notes.append(
            f"Left out: the lesion test; evaluate.lesion_modality is '{settings.lesion_modality}', the modalities are"
            f" {', '.join(names)}: name the one that shows the lesion."
        )
    if "disentanglement" in suites and not subject.model.draws:
        notes.append("Left out: residual private parts, and lesions in translations; stage 2 is not trained.")
    notes += [
        f"Left out: {what}; {why}."
        for suite, group, what, why in _UNMEASURED
        if suite in suites and group not in measured
    ]
    return notes + (subject.spaces[1] if "fidelity" in suites else [])


def _borrowed(subject: Subject) -> list[str]:
    """Say so where stage 2 does not generate the shared part."""
    mode = subject.model.recipe.diffusion.mode
    text = f"Stage 2 was trained in mode {mode}: jointly generated tuples have the shared part of a training sample."
    return [] if mode == "joint" else [text]
