"""Rank predictions by how well they fit the prompt: cosine distance of CLIP embeddings, on the open_clip library.

As in Blended Latent Diffusion (Avrahami, Fried and Lischinski 2023, "Prediction ranking"): several predictions
are made, each is masked, and they are sorted by `1 - cos(CLIP_image(x * m), CLIP_text(d))`, nearest first.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.data.crops import cut_square, square_around, whole_picture
from ldm.errors import UserError
from ldm.imports import import_open_clip, import_transformers_too

logger = logging.getLogger(__name__)

CONFIG_NAME, WEIGHTS_NAME = "open_clip_config.json", "open_clip_model.safetensors"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
CHUNK = 64  # predictions embedded at once
PROBE_SECONDS = 5.0  # how long the weights' server may take to answer before we do without


class NoWeightsError(UserError):
    """No CLIP weights can be had here: a missing folder, or neither a cached file nor a network."""


@dataclass(frozen=True)
class Framing:
    """What of a prediction the image encoder sees; the key `ranking` of a local model's config.

    crop: look only at the square around the mask, for an encoder that was trained on crops of objects.
    margin: how much wider than the mask that square is on each side, as a fraction of the mask's longer side.
    mirror: embed the mirror image too and take the mean of both, which a small encoder is surer of.
    """

    crop: bool = False
    margin: float = 0.0
    mirror: bool = False


class Tokenizer(Protocol):
    """A prompt -> ids (1, context_length), cut or padded to that length; open_clip's tokenizers are such."""

    def __call__(self, texts: str, context_length: int | None = None) -> Tensor: ...


class CLIPRanker:
    """Distances between pictures and a prompt under a CLIP model, without gradients."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        device: torch.device | str = "cpu",
        framing: Framing | None = None,
    ):
        """Wrap an open_clip model, which is moved to `device`, and its tokenizer."""
        self.model: Any = model.to(device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.framing = framing or Framing()
        self._told: set[str] = set()  # prompts that were said to be too long

    @classmethod
    def from_folder(cls, folder: Path | str, device: torch.device | str = "cpu") -> "CLIPRanker":
        """Load a local open_clip model: its config, its weights and, unless it uses open_clip's own, its tokenizer.

        Raises:
            NoWeightsError: there is no such folder.
            UserError: the folder exists but does not hold a model that open_clip can load.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise NoWeightsError(f"there is no CLIP model in {folder}")
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if not (folder / name).is_file():
                raise UserError(f"the CLIP model {folder} lacks {name}: restore the folder or name another")
        with _loading(folder):
            config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
            framing = Framing(**config.get("ranking", {}))
            text = config["model_cfg"].get("text_cfg", {})
            model, tokenizer = _create(f"local-dir:{folder}", text, _local_tokenizer(folder, text))
        return cls(model, tokenizer, device, framing)

    @classmethod
    def from_name(cls, name: str, device: torch.device | str = "cpu") -> "CLIPRanker":
        """Load a model that open_clip knows, from the hub's cache or, once, from the hub.

        Args:
            name: `architecture/pretrained`, such as `ViT-B-16-quickgelu/openai` (150M parameters, 600 MB).

        Raises:
            NoWeightsError: the weights are not cached and cannot be downloaded.
            UserError: open_clip knows no such model, or the cached file is damaged.
        """
        open_clip = import_open_clip()
        architecture, _, tag = name.rpartition("/")
        source = open_clip.get_pretrained_cfg(architecture, tag)
        if not source.get("hf_hub"):
            raise UserError(f'"{name}" is neither a folder nor a CLIP model on the hub: try ViT-B-16-quickgelu/openai')
        weights = _hub_weights(source["hf_hub"])
        with _loading(weights):
            model, tokenizer = _create(
                architecture,
                open_clip.get_model_config(architecture).get("text_cfg", {}),
                pretrained=weights,  # by path, so that open_clip asks no server again
                # OpenAI trained with QuickGELU; given the plain architecture, open_clip would only warn.
                force_quick_gelu=source.get("quick_gelu", False),
                force_preprocess_cfg={key: source[key] for key in ("mean", "std", "interpolation")},
            )
        return cls(model, tokenizer, device)

    @torch.no_grad()
    def distances(self, x: Tensor, mask: Tensor | None, prompt: str) -> Tensor:
        """Cosine distances `1 - cos` between predictions and the prompt: lower is better, 0 to 2.

        Args:
            x: predictions (B,3,H,W) in [-1,1], any B.
            mask: (1,1,H,W) or (B,1,H,W), 1 = edited, one for all or for each; what lies outside is blackened first.
                None looks at the whole picture.
            prompt: the text; what exceeds the encoder's length is cut off, with one notice.

        Returns:
            (B,) float32 on the CPU.
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"predictions are (B,3,H,W), got {tuple(x.shape)}")
        if mask is None:
            mask = torch.ones(1, 1, *x.shape[2:])
        elif mask.shape not in ((1, 1, *x.shape[2:]), (len(x), 1, *x.shape[2:])):
            raise ValueError(f"the mask of predictions {tuple(x.shape)} is (1 or B,1,H,W), got {tuple(mask.shape)}")
        masks = mask.float().cpu().expand(len(x), -1, -1, -1)
        text = self.text_embedding(prompt)
        distances = []
        for chunk, own in zip(x.split(CHUNK), masks.split(CHUNK), strict=True):
            pixels = torch.cat(list(map(self._pixels, chunk.split(1), own.split(1)))).to(self.device)
            image = self._embed(pixels)  # (b, d)
            distances.append(1 - (image @ text.T).squeeze(1).float().cpu())
        return torch.cat(distances)

    @torch.no_grad()
    def text_embedding(self, prompt: str) -> Tensor:
        """The unit embedding (1, d) of a prompt."""
        return self.model.encode_text(self._tokens(prompt).to(self.device), normalize=True)

    def _tokens(self, prompt: str) -> Tensor:
        """Ids (1, n) of a prompt. The first time that one is too long, a notice says so."""
        tokens = self.tokenizer(prompt)
        n = tokens.shape[1]
        # One place more, and the end of a prompt that was cut at n is another.
        if prompt not in self._told and not torch.equal(self.tokenizer(prompt, n + 1)[:, :n], tokens):
            self._told.add(prompt)
            logger.warning("CLIP reads %d tokens: predictions are ranked by the beginning of the prompt alone", n)
        return tokens

    def _embed(self, pixels: Tensor) -> Tensor:
        """Unit embeddings (b, d) of what `_pixels` has prepared."""
        image = self.model.encode_image(pixels, normalize=True)
        if not self.framing.mirror:
            return image
        return F.normalize(image + self.model.encode_image(pixels.flip(-1), normalize=True), dim=-1)

    def _pixels(self, x: Tensor, mask: Tensor) -> Tensor:
        """What the image encoder takes, (1,3,S,S): masked, squared, scaled, normalised by the model's statistics.

        Done on the CPU in float32, so that every device ranks the same pixels. Black surrounds the mask, and also
        the picture where the square leaves it: nothing of an oblong picture is cut off or squashed.
        """
        visual = self.model.visual
        x = x.float().cpu().add(1).div(2).clamp(0, 1) * mask
        square = square_around(mask, self.framing.margin) if self.framing.crop else whole_picture(*x.shape[2:])
        size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
        x = cut_square(x, square, size, visual.preprocess_cfg["interpolation"])
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (visual.image_mean, visual.image_std))
        return (x - mean) / std


def rank(distances: Tensor) -> Tensor:
    """The order of the predictions, best first: the permutation that sorts `distances` (B,), ties as they stood."""
    return torch.argsort(distances, stable=True)


def find_ranker(clip: Path | str | None, device: torch.device | str = "cpu") -> CLIPRanker | None:
    """The ranker that a model asks for, or None, after one notice, where its weights cannot be had.

    Args:
        clip: the folder of a local open_clip model, or open_clip's name of one, `architecture/pretrained`; None for
            a model that has no ranker.
        device: where it is to run.

    Raises:
        UserError: the folder exists but is damaged, or open_clip does not know the name.
    """
    try:
        if clip is None:
            raise NoWeightsError("this model comes without a CLIP model")
        if isinstance(clip, Path) or clip.count("/") != 1 or Path(clip).is_dir():
            return CLIPRanker.from_folder(clip, device)
        return CLIPRanker.from_name(clip, device)
    except NoWeightsError as reason:
        logger.warning("predictions stay in the order of their seeds, unranked: %s", reason)
        return None


def _hub_weights(source: str) -> str:
    """The path of `organisation/model/[file]` in the hub's cache, downloaded when it is not there yet."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repo, _, file = source.rpartition("/")
    file = file or WEIGHTS_NAME
    cached = try_to_load_from_cache(repo, file)
    if isinstance(cached, str):
        return cached
    try:
        # The download retries for half a minute where there is no network; one short question first.
        size = get_hf_file_metadata(hf_hub_url(repo, file), timeout=PROBE_SECONDS).size
        logger.info("downloading CLIP once, %.0f MB, from huggingface.co/%s", (size or 0) / 1e6, repo)
        return hf_hub_download(repo, file)
    except Exception as error:  # the client's network errors share no base class across its versions
        reason = " ".join(str(error).split())[:120]
        raise NoWeightsError(f"CLIP ({repo}) is not cached and cannot be downloaded ({reason})") from error


class _LocalTokenizer:
    """A folder's `tokenizer.json`, cleaned, cut and padded as open_clip's `HFTokenizer` does by `transformers`."""

    def __init__(self, folder: Path, special: Mapping[str, str], context_length: int):
        import tokenizers

        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.add_special_tokens(list(special.values()))
        self.clean = import_open_clip().tokenizer.get_clean_fn("whitespace")
        self.pad, self.context_length = special["pad_token"], context_length
        self.unknown = special.get("unk_token", "[UNK]")

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the vocabulary does not hold."""
        return [word for word in self.clean(text).split() if self.unknown in self.tokenizer.encode(word).tokens]

    def __call__(self, texts: str, context_length: int | None = None) -> Tensor:
        n = context_length or self.context_length
        self.tokenizer.enable_truncation(n)
        self.tokenizer.enable_padding(pad_id=self.tokenizer.token_to_id(self.pad), pad_token=self.pad, length=n)
        return torch.tensor([self.tokenizer.encode(self.clean(texts)).ids])


def _local_tokenizer(folder: Path, text: Mapping[str, Any]) -> _LocalTokenizer | None:
    """The tokenizer of a model's folder, where it is one that `transformers` would take as it stands."""
    files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json")]
    if not text.get("hf_tokenizer_name") or {"tokenizer_mode", "tokenizer_kwargs"} & text.keys():
        return None
    if not all(file.is_file() for file in files):
        return None
    settings = json.loads(files[1].read_text(encoding="utf-8"))
    special = {key: value for key, value in settings.items() if key in SPECIAL_TOKENS and isinstance(value, str)}
    others = settings.keys() - special.keys() - {"tokenizer_class", "model_max_length"}
    if settings.get("tokenizer_class") != "PreTrainedTokenizerFast" or others or "pad_token" not in special:
        return None
    return _LocalTokenizer(folder, special, text.get("context_length", 77))


def _create(
    name: str, text: Mapping[str, Any], tokenizer: Tokenizer | None = None, **kwargs: Any
) -> tuple[nn.Module, Tokenizer]:
    """The model and tokenizer that open_clip knows by `name`; its weights must be there.

    Args:
        text: `text_cfg` of the model's config. tokenizer: None takes open_clip's.
    """
    open_clip = import_open_clip()
    if text.get("hf_model_name"):
        import_transformers_too()
    with _quiet():
        model = open_clip.create_model(name, require_pretrained=True, **kwargs)
        return model, tokenizer or open_clip.get_tokenizer(name)


@contextlib.contextmanager
def _loading(source: Path | str) -> Iterator[None]:
    """Report as one line whatever goes wrong: damaged files fail in a dozen ways, inside four libraries."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        line = f"cannot load the CLIP model {source} ({type(error).__name__}: {reason}); restore it, or remove it"
        raise UserError(line) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip, which logs on the root logger, from speaking there and from giving it a handler."""
    root, silence, block = logging.getLogger(), logging.NullHandler(), lambda record: False
    root.addHandler(silence)  # `logging.info` adds a handler to a root logger without one: notices would come twice
    root.addFilter(block)  # a logger's filter sees what is logged on it directly, not what comes from others
    try:
        yield
    finally:
        root.removeFilter(block)
        root.removeHandler(silence)
