"""Puts an `ffmpeg` on the PATH of a virtual environment: `python -m jacobinerf_ns.compat.ffmpeg FOLDER`.

nerfstudio's video commands look for the program by name and stop without it; `imageio-ffmpeg` ships one under another
name.
"""

import shutil
import sys
from pathlib import Path


def link_ffmpeg(folder: Path) -> Path:
    """Links `folder`/ffmpeg to the bundled program, unless there is an ffmpeg on the PATH already."""
    import imageio_ffmpeg

    found = shutil.which("ffmpeg")
    if found is not None:
        return Path(found)
    link = folder / "ffmpeg"
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    return link


if __name__ == "__main__":
    print(f"ffmpeg: {link_ffmpeg(Path(sys.argv[1]))}")
