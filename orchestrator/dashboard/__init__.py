"""A run as one self-contained HTML page: `page.render_page(view)`.

Data preparation (typed values, no markup) is apart from the templates, which only lay out.
"""
