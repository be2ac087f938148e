"""Pictures of noise, and Parquet files of them as the Hub serves them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(number: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Image.Image:
    """(width, height) of noise that a number determines."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    noise = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


def write_split(path: Path, images: list[bytes], labels: list[int], row_group: int = 4) -> None:
    """A file as the Hub serves it."""
    features = {"img": {"_type": "Image"}, "label": {"names": ["cat", "dog", "owl"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("img", struct), ("label", pa.int64())], metadata=metadata)
    rows = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table([rows, labels], schema=schema), path, row_group_size=row_group)
