"""A lesson as one HTML file with its drawings in it: for JupyterLab's export and for nbconvert, which leave out pictures
from other folders. .jupyter/*.json names the class."""
import base64
import re
from pathlib import Path

from nbconvert.preprocessors import Preprocessor


class Drawings(Preprocessor):
    """Attaches to each text the drawings that it shows, `![...](../figures/name.svg)`."""

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == "markdown":
            folder = Path(resources.get("metadata", {}).get("path", "") or ".")
            for name in re.findall(r"\]\(\.\./figures/(\w+\.svg)\)", cell.source):
                picture = base64.b64encode((folder / ".." / "figures" / name).read_bytes()).decode()
                cell.setdefault("attachments", {})[name] = {"image/svg+xml": picture}
                cell.source = cell.source.replace(f"](../figures/{name})", f"](attachment:{name})")
        return cell, resources
