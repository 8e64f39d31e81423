"""Outputs that nbval does not compare: figures and HTML contain random ids and floats."""


def pytest_collectstart(collector):
    """Exclude these MIME types from nbval's comparison."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("application/vnd.plotly.v1+json", "text/html")
