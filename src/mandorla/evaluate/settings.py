"""Settings of the evaluation."""

from pydantic import Field

from mandorla.config import Settings


class EvaluateConfig(Settings):
    """How many samples each figure is measured on, and which factors of the data are what."""

    num_train: int = Field(4000, ge=20)
    """training samples that probes are fitted on and copies are looked for among"""
    num_test: int = Field(2000, ge=10)
    """test samples at most"""
    num_residual: int = Field(1000, ge=0)
    """training samples and test samples whose residual private parts are probed; 0 for none"""
    num_generated: int = Field(1000, ge=10)
    """generated samples for coherence, swaps, lesions and the copy audit"""
    num_translated: int = Field(64, ge=1)
    """test samples that are translated on every route and reconstructed"""
    num_samples: int = Field(8, ge=1)
    """samples per translation; likeness is given for a single one and for the mean of all"""
    routes: tuple[tuple[str, str], ...] = ()
    """translations to measure, as pairs of modalities [given, wanted]; empty for all ordered pairs"""
    judge_steps: int = Field(600, ge=1)
    """training steps of the supervised classifiers"""
    judge_batch_size: int = Field(64, ge=2)
    """samples per training step of the supervised classifiers"""
    label: str = "digit"
    """factor that all modalities share: the class; without it in the data, what needs it is left out"""
    private_label: str = "quadrant"
    """factor that each modality has for itself, called `<this>_<modality>` in the data"""
    lesion: str = "lesion_present"
    """factor that says whether a sample has a lesion; its place is the factor `lesion_mask`"""
    lesion_modality: str = "t2"
    """the modality that shows the lesion"""
