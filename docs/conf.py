"""How Sphinx builds the site: `python -m sphinx -W -c docs . build/site`, in the root.

The root is the source folder, so that every link works in the repository and on the site alike.
"""

from importlib.metadata import version as version_of

project = "rmsprop_jax"
author = "The rmsprop_jax authors"
project_copyright = f"2026, {author}"
version = release = version_of("rmsprop_jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "notebooks/*.ipynb",
    "examples/README.md",
    "benchmarks/RESULTS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = [".*", "build", "dist", "rmsprop_jax", "tests"]

# Notebooks are shown as they were committed: .ci/run executes them.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Signatures as one would type them; the text says what each argument may be.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # a list, not a heading for each
default_role = "any"

html_theme = "sphinx_book_theme"
html_title = "rmsprop_jax"
html_context = {"default_mode": "auto"}
html_favicon = "site/favicon.svg"
html_static_path = ["site/custom.css"]
html_css_files = ["custom.css"]
html_extra_path = ["site/index.html"]  # leads to docs/index.html
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "navbar_persistent": [],  # the search stands in the sidebar
}
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
