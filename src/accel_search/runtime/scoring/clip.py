"""Score images against their prompts with CLIP, by open_clip."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from accel_search.core.paths import local_path
from accel_search.errors import ConfigurationError, LoadError, OutOfMemoryError, first_line
from accel_search.runtime.demo import demo_part
from accel_search.runtime.loading.hub import cached_folder, causes, explain, is_of_the_hub
from accel_search.runtime.memory import is_out_of_memory, parse_shortage
from accel_search.runtime.quiet import quiet_libraries
from accel_search.runtime.scoring.precision import whole_float32
from accel_search.runtime.scoring.preprocessing import batched, check_preprocessing
from accel_search.settings import Settings

DEFAULT_MODEL = "ViT-L-14"
DEFAULT_PRETRAINED = "openai"
LOCAL_DIR = "local-dir:"
SAYS_NOTHING = ("Error(s) in loading state_dict", "Weights only load failed")
"""Beginnings of torch's errors whose first line lacks the reason."""
UNPICKLER = "WeightsUnpickler error: "
"""Precedes the reason in such an error."""
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""Files that open_clip 3.3 looks for in a folder, in this order; else any .safetensors."""


class _Asked(NamedTuple):
    """A model for open_clip to load, with texts for messages."""

    model: str
    """One of its models, or a folder prefixed with `LOCAL_DIR`."""
    pretrained: str | None
    """A weight tag or a file; None for a folder."""
    name: str
    """Name of the scorer."""
    given: str
    """Option and value, e.g. `--clip_model ViT-B-32`."""
    remedy: str
    """What to do if existing weights cannot be loaded."""


class ClipScorer:
    """Scores images with one open_clip model, in float32.

    Args:
        model: An open_clip model in eval mode.
        transform: Its preprocessing for inference (a torchvision Compose).
        tokenizer: Its tokenizer, which truncates texts to the context length.
        name: Identifies model and weights, for the provenance.
        device: Where it scores; None is the model's device.
    """

    def __init__(
        self,
        model: Any,
        transform: Any,
        tokenizer: Any,
        name: str,
        device: torch.device | None = None,
    ) -> None:
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._steps = batched(transform)
        self._tokenizer = tokenizer
        self._device = device or next(model.parameters()).device
        self._is_parked = next(model.parameters()).device != self._device
        # Every trial scores the same prompts.
        self._text_features: dict[str, torch.Tensor] = {}
        # Of the images scored last, `[B, D]`.
        self._image_features: torch.Tensor | None = None

    @property
    def weight_bytes(self) -> int:
        """Return the size of its weights."""
        return weight_bytes(self._model)

    def park(self) -> bool:
        """Keep the weights in main memory between scorings, to free the device for timed calls.

        It still scores on its device, so that scores do not change.

        Returns:
            Whether that freed memory.
        """
        if self._is_parked or self._device.type == "cpu":
            return False
        self._model.to("cpu")
        self._is_parked = True
        return True

    def unpark(self) -> None:
        """Keep the weights on the device at all times."""
        self._model.to(self._device)
        self._is_parked = False

    @torch.no_grad()
    def score(self, images: torch.Tensor, texts: Sequence[str]) -> list[float]:
        """Return 100 × the cosine similarity of each image with its text; higher is better.

        Args:
            images: `[B, 3, H, W]`, 0..1.
            texts: One for each image.
        """
        with self._on_device():
            features = self._model.encode_image(self.preprocess(images), normalize=True)
            self._image_features = features
            return self._cosines(features, texts)

    @torch.no_grad()
    def score_shuffled(self, captions: Sequence[str], positions: Sequence[int]) -> list[float]:
        """Return the scores of the images scored last, each against another caption of the set.

        It is the one before the image's own, for the first image the last: the same at every batch
        size, of 1 too. Only texts that are not encoded yet cost anything.

        Args:
            captions: The whole set.
            positions: Each image's own caption in it.

        Returns:
            A score an image; nothing for a set of one caption, which has no other.
        """
        if len(captions) < 2:
            return []
        features = self._image_features
        if features is None or len(features) != len(positions):
            raise ValueError(f"{len(positions)} captions, but not as many images scored last")
        with self._on_device():
            return self._cosines(features, [captions[position - 1] for position in positions])

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Keep the weights on the device, and float32 whole, for the length of a `with` block."""
        try:
            self._model.to(self._device)
            with whole_float32():
                yield
        finally:
            if self._is_parked:
                self._model.to("cpu")

    def _cosines(self, features: torch.Tensor, texts: Sequence[str]) -> list[float]:
        cosines = (features * self._encode(texts)).sum(dim=1)
        return [float(cosine) for cosine in (100.0 * cosines).tolist()]

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Return images preprocessed by the model's own steps.

        They are rounded to 8 bits first, so that an image scores as from a PNG file, and clipped
        after resizing, since bicubic interpolation overshoots.

        Args:
            images: `[B, 3, H, W]`, 0..1.

        Returns:
            `[B, 3, h, w]`, float32, normalised, on the model's device.
        """
        images = images.to(device=self._device, dtype=torch.float32)
        images = (images.clamp(0, 1) * 255).round() / 255
        for step in self._steps:
            images = step(images)
        return images

    def _encode(self, texts: Sequence[str]) -> torch.Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self._text_features]
        if new:
            tokens = self._tokenizer(new).to(self._device)
            features = self._model.encode_text(tokens, normalize=True)
            self._text_features.update(zip(new, features, strict=True))
        return torch.stack([self._text_features[text] for text in texts])


def weight_bytes(module: torch.nn.Module) -> int:
    """Return the size of a module's parameters and buffers."""
    tensors = (*module.parameters(), *module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def load_scorer(settings: Settings, device: torch.device, *, parked: bool = False) -> ClipScorer:
    """Load the scorer of the settings; by default the demo's for the demo, else ViT-L-14/openai.

    Args:
        settings: Give model and weights.
        device: Where it scores.
        parked: Whether to keep its weights in main memory at first.

    Raises:
        LoadError: It cannot be found, fetched or loaded.
        ConfigurationError: The model has no such weights, or no default weights.
    """
    scorer = _find(settings, device)
    if not parked:
        try:
            scorer.unpark()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"--clip_model {scorer.name}: the scorer does not fit {device} "
                f"({parse_shortage(str(error))}): use a GPU with more memory free"
            ) from error
    return scorer


def _find(settings: Settings, device: torch.device) -> ClipScorer:
    model, pretrained = settings.clip_model, settings.clip_pretrained
    if model is None and pretrained is None and settings.pipe == "demo":
        return _from_folder(demo_part("scorer"), "demo", device)
    if model is not None:
        folder = local_path(model.removeprefix(LOCAL_DIR))
        if model.startswith(LOCAL_DIR) or folder.is_dir():
            if pretrained is not None:
                raise ConfigurationError(
                    f"--clip_pretrained {pretrained}: --clip_model {model} is a folder with "
                    "weights of its own: give one of the two"
                )
            return _from_folder(folder, model, device)
    return _from_name(model or DEFAULT_MODEL, pretrained, device)


def _from_folder(folder: Path, name: str, device: torch.device) -> ClipScorer:
    config = folder / "open_clip_config.json"
    given = f"--clip_model {name}"
    if not config.is_file():
        raise LoadError(
            f"{given}: {config} is missing; give an open_clip model name, or a folder that "
            "holds open_clip_config.json and its weights"
        )
    weights = _find_weights(folder, given)
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        text = content["model_cfg"]["text_cfg"]
        own_code = bool(text.get("tokenizer_kwargs", {}).get("trust_remote_code"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(
            f"{given}: {config} is no open_clip configuration ({first_line(error, 120)})"
        ) from error
    if own_code:
        raise LoadError(f"{given}: its tokenizer asks to run its own code, which is refused")
    check_preprocessing(content.get("preprocess_cfg"), given)
    label = name if name == "demo" else folder.resolve().name
    label = f"{label}@{_digest(weights, given)}"
    remedy = (
        f"its weights and {config.name} are of different models or corrupt: fetch or save it again"
    )
    return _load(_Asked(f"{LOCAL_DIR}{folder}", None, label, given, remedy), device)


def _find_weights(folder: Path, given: str) -> Path:
    """Return the file that open_clip reads in a scorer's folder, which may hold others' too."""
    file = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if file is None:
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise LoadError(
                f"{given}: {folder} holds {len(files)} .safetensors files and none of "
                f"{', '.join(WEIGHTS[:2])}: leave just one, with open_clip's weights"
            )
        return files[0]
    if file.suffix != ".safetensors":
        raise LoadError(
            f"{given}: a folder of which open_clip reads its {file.name}, a pickle: give the "
            f"model's name and --clip_pretrained {file}, or save its tensors as {WEIGHTS[0]}"
        )
    return file


def _digest(weights: Path, given: str) -> str:
    """Return a digest of a weight file."""
    try:
        with weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise LoadError(
            f"{given}: {weights} cannot be read ({first_line(error, 160)}): fix that, or give "
            "another"
        ) from error


def _from_name(model: str, pretrained: str | None, device: torch.device) -> ClipScorer:
    import open_clip

    known = open_clip.list_models()
    if model not in known:
        raise LoadError(
            f"--clip_model {model}: neither a folder nor one of open_clip's {len(known)} models, "
            f"e.g. {DEFAULT_MODEL} or ViT-B-32"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        if DEFAULT_PRETRAINED not in tags:
            raise ConfigurationError(
                f"--clip_model {model} needs --clip_pretrained: {', '.join(tags) or 'a file'}"
            )
        pretrained = DEFAULT_PRETRAINED
    if pretrained not in tags:
        return _from_file(model, pretrained, tags, device)
    name, given = f"{model}/{pretrained}", f"--clip_model {model}"
    copy = cached_folder(_hub_id(model, pretrained))
    remedy = f"remove {copy} to fetch it again, or give a folder"
    return _load(_Asked(model, pretrained, name, given, remedy), device)


def _from_file(
    model: str, pretrained: str, tags: Sequence[str], device: torch.device
) -> ClipScorer:
    file, given = local_path(pretrained), f"--clip_pretrained {pretrained}"
    if not file.is_file():
        raise LoadError(f"{given}: for {model} give one of {', '.join(tags)}, or a file")
    name = f"{model}/{file.name}@{_digest(file, given)}"
    remedy = (
        f"give a file with the weights of {model} (.safetensors, or a state_dict that torch.save "
        "wrote), or give their model by --clip_model"
    )
    scorer = _load(_Asked(model, str(file), name, given, remedy), device)
    _warn_of_gelu(model, given)
    return scorer


def _warn_of_gelu(model: str, given: str) -> None:
    """Warn where a file's weights may need another GELU than the model's."""
    import open_clip

    twin = f"{model}-quickgelu"
    if twin in open_clip.list_models() and not open_clip.get_model_config(model).get("quick_gelu"):
        logging.getLogger("accel_search").warning(
            "%s: a file does not say which GELU it was trained with, and %s has the plain one: for "
            "weights trained with QuickGELU, as OpenAI's and most of DFN's and MetaCLIP's, give "
            "--clip_model %s, or scores are wrong",
            given,
            model,
            twin,
        )


def _load(asked: _Asked, device: torch.device) -> ClipScorer:
    """Create model, preprocessing and tokenizer; any failure is one LoadError."""
    import open_clip

    model, pretrained = asked.model, asked.pretrained
    # OpenAI's weights were trained with another GELU than open_clip's models of the same name:
    # open_clip would only warn.
    config = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else {}
    try:
        with quiet_libraries():
            net, _, transform = open_clip.create_model_and_transforms(
                model,
                pretrained,
                precision="fp32",
                device="cpu",
                force_quick_gelu=bool(config.get("quick_gelu")),
                pretrained_text=False,
            )
            tokenizer = open_clip.get_tokenizer(model)
    except Exception as error:  # Networks and corrupt files raise many classes.
        raise LoadError(f"{asked.given}: {_complaint(error, asked)}") from error
    logging.getLogger("accel_search").debug("scoring with %s", asked.name)
    return ClipScorer(net, transform, tokenizer, asked.name, device)


def _complaint(error: Exception, asked: _Asked) -> str:
    """Return why a scorer could not be loaded, and what to do about it.

    For weights from the hub, any OSError counts as a failed fetch; for a folder or a file, only an
    error of the hub itself, on fetching a tokenizer.
    """
    hub_id = _hub_id(asked.model, asked.pretrained)
    if is_of_the_hub(error) or (hub_id and any(isinstance(e, OSError) for e in causes(error))):
        what = asked.name if hub_id else "the model's tokenizer or text part"
        instead = "give a folder" if hub_id else "choose another model"
        obstacle = explain(error, hub_id, instead)
        return f"{what} {obstacle.reason}: {obstacle.remedy}"
    remedy = "install what is missing" if isinstance(error, ImportError) else asked.remedy
    return f"{asked.name} could not be loaded ({_cause(error)}): {remedy}"


def _hub_id(model: str, pretrained: str | None) -> str:
    """Return the repository of a weight tag; blank for a folder or a file."""
    import open_clip

    config = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else {}
    return "/".join(str(config.get("hf_hub", "")).split("/")[:2])


def _cause(error: Exception, limit: int = 160) -> str:
    """Return an error's class and its first informative sentence."""
    text = str(error).rpartition(UNPICKLER)[2].strip()
    first, _, rest = text.partition("\n")
    text = rest.strip() if first.startswith(SAYS_NOTHING) else text
    # After a blank line or a full stop, torch advises to run the file's code: drop that.
    text = " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].rstrip(" .")
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
