"""The one module that knows faiss: unit vectors by inner product, numbered by their position."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .rows import Float32s, Int64s

Bools = npt.NDArray[np.bool_]

ROWS_PER_BLOCK = 65_536
"""Vectors that are read, added or compared at once."""
_MAX_EF_SEARCH = 4096


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How thorough a search is; what an index has no use for is ignored. None: as stored in the index."""

    nprobe: int | None = None
    """Lists visited, of an inverted file."""
    ef_search: int | None = None
    """Candidates kept, of an HNSW graph."""
    k_factor: int | None = None
    """Candidates for each result that are compared again by their stored vectors."""

    def widened(self, factor: float) -> SearchSettings:
        """For a search in which only one of `factor` vectors counts."""
        return SearchSettings(
            nprobe=None if self.nprobe is None else int(np.ceil(self.nprobe * factor)),
            ef_search=None
            if self.ef_search is None
            else min(int(np.ceil(self.ef_search * factor)), max(self.ef_search, _MAX_EF_SEARCH)),
            k_factor=self.k_factor,
        )


class VectorIndex:
    """A faiss index. Searches may run at the same time in several threads, changes may not."""

    def __init__(self, index: Any) -> None:
        """Wrap a faiss index of metric inner product."""
        faiss = _faiss()
        self._whole = index  # what `downcast_index` gives does not keep its memory
        self._index = faiss.downcast_index(index)
        self._mapping = threading.Lock()

    @classmethod
    def make(cls, factory: str, embed_dim: int) -> VectorIndex:
        """An empty index, to be trained.

        Args:
            factory: string of `faiss.index_factory`.
            embed_dim: width D.

        Raises:
            ValueError: faiss does not understand the factory, or not for this width.
        """
        faiss = _faiss()
        try:
            return cls(faiss.index_factory(embed_dim, factory, faiss.METRIC_INNER_PRODUCT))
        except RuntimeError as error:
            raise ValueError(
                f"faiss cannot make {factory!r} of width {embed_dim}: {_reason(error)}"
            ) from None

    @classmethod
    def read(cls, path: Path, *, mapped: bool) -> VectorIndex:
        """Read an index.

        Args:
            path: a file, or a folder with `populated.index` and lists on disk (autofaiss).
            mapped: leave vectors on disk and map them; such an index cannot be changed.

        Raises:
            ValueError: it is damaged, no index, or of another metric than inner product.
        """
        faiss = _faiss()
        inside = path / "populated.index"
        if path.is_dir():
            flags = faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY
        else:
            inside, flags = path, faiss.IO_FLAG_MMAP_IFC if mapped else 0
        try:
            index = faiss.read_index(str(inside), flags)
        except RuntimeError as error:
            raise ValueError(f"{path} is damaged or no faiss index: {_reason(error)}") from None
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"{path} is of another metric than inner product: build it with metric 'ip'")
        return cls(index)

    def write(self, path: Path) -> None:
        """Write to a file that does not exist yet (another may be mapped)."""
        _faiss().write_index(self._index, str(path))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def embed_dim(self) -> int:
        """Width D."""
        return int(self._index.d)

    @property
    def num_lists(self) -> int | None:
        """Of an inverted file, its lists."""
        ivf = self._inverted_file()
        return None if ivf is None else int(ivf.nlist)

    @property
    def is_graph(self) -> bool:
        """Whether it is an HNSW graph."""
        return isinstance(self._index, _faiss().IndexHNSW)

    @property
    def is_flat(self) -> bool:
        """Whether every search is exact."""
        return isinstance(self._index, _faiss().IndexFlat)

    @property
    def refines(self) -> bool:
        """Whether candidates are compared again by their stored vectors."""
        return isinstance(self._index, _faiss().IndexRefine)

    @property
    def keeps_vectors(self) -> bool:
        """Whether `vectors` gives what was added, up to rounding to fp16."""
        faiss = _faiss()
        part = self._index
        if self.refines:
            part = faiss.downcast_index(part.refine_index)
        elif self.is_graph:
            part = faiss.downcast_index(part.storage)
        if isinstance(part, faiss.IndexScalarQuantizer | faiss.IndexIVFScalarQuantizer):
            return bool(part.sq.qtype == faiss.ScalarQuantizer.QT_fp16)
        return isinstance(part, faiss.IndexFlat | faiss.IndexIVFFlat)

    def train(self, rows: Float32s) -> None:
        """Learn lists and codes from a sample (n, D).

        Raises:
            ValueError: the sample is too small.
        """
        if self._index.is_trained:
            return
        try:
            self._index.train(np.ascontiguousarray(rows))
        except RuntimeError as error:
            raise ValueError(
                f"faiss cannot be trained with {len(rows)} vectors, choose --kind flat: {_reason(error)}"
            ) from None

    def add(self, rows: Float32s) -> None:
        """Append (n, D)."""
        self._index.add(np.ascontiguousarray(rows))

    def clear(self) -> None:
        """Forget all vectors but not what was learnt."""
        self._index.reset()

    def search(
        self, queries: Float32s, k: int, settings: SearchSettings, allowed: Bools | None = None
    ) -> tuple[Float32s, Int64s]:
        """Nearest vectors by inner product.

        Args:
            queries: (Q, D).
            k: at least 1.
            settings: how thorough.
            allowed: (N,) positions that may be found; None: all.

        Returns:
            (Q, k) similarities and positions, the best first; position -1 where fewer were found.
        """
        faiss = _faiss()
        selector = (
            None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        )
        parameters = _parameters(self._index, settings, selector)
        similarities, positions = self._index.search(np.ascontiguousarray(queries), k, params=parameters)
        return similarities, positions

    def vectors(self, positions: Int64s) -> Float32s:
        """(n, D) vectors as they are stored: exact where `keeps_vectors`, else decoded from their codes."""
        ivf = self._inverted_file()
        if ivf is not None and not self.refines:
            with self._mapping:
                ivf.make_direct_map()
        rows: Float32s = self._index.reconstruct_batch(np.ascontiguousarray(positions, np.int64))
        return rows

    def _inverted_file(self) -> Any:
        faiss = _faiss()
        part = self._index
        if self.refines:
            part = faiss.downcast_index(part.base_index)
        if isinstance(part, faiss.IndexPreTransform):
            part = faiss.downcast_index(part.index)
        return part if isinstance(part, faiss.IndexIVF) else None


def _parameters(index: Any, settings: SearchSettings, selector: Any) -> Any:
    faiss = _faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return faiss.IndexRefineSearchParameters(
            k_factor=settings.k_factor or index.k_factor,
            base_index_params=_parameters(index.base_index, settings, selector),
        )
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, settings, selector))
    more = {} if selector is None else {"sel": selector}
    if isinstance(index, faiss.IndexIVF):
        kind = faiss.IVFPQSearchParameters if type(index) is faiss.IndexIVFPQ else faiss.SearchParametersIVF
        return kind(nprobe=min(settings.nprobe or index.nprobe, index.nlist), **more)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=settings.ef_search or index.hnsw.efSearch, **more)
    return faiss.SearchParameters(**more) if more else None


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise OSError(
            "a search index needs faiss: pip install 'clipkit[cpu]', or 'clipkit[gpu]' with CUDA"
        ) from None
    return faiss


def _reason(error: RuntimeError) -> str:
    """What faiss says, without the place in its source."""
    text = " ".join(str(error).split())
    return text.rpartition(": Error: ")[2] or text
