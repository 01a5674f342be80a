"""The top-level folder ``workflows/`` installs as the subpackage ``moesr_bids.workflows``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["moesr_bids", "moesr_bids.*"]), "moesr_bids.workflows"],
    package_dir={"moesr_bids": "moesr_bids", "moesr_bids.workflows": "workflows"},
)
