"""What nbval does not compare: figures and HTML carry random ids and floats."""


def pytest_collectstart(collector):
    """Tell nbval's collectors."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("application/vnd.plotly.v1+json", "text/html")
