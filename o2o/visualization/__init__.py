"""Models for the eye: a page in HTML, and data for Google's Model Explorer.

`blocks` divides a graph into its layers, and `layer_drawing` draws them. `page` is the page of
`inspect.model.py --html`, and `node_data` are numbers of operators for Model Explorer.
"""
