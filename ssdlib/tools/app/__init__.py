"""A page in the browser for the person at the microscope: drop field images in, see and count the cells, move
the score thresholds, save the results. `launch` opens it, below a notebook's cell as notebook 7 shows, too;
`page` alone needs Gradio (extra `app`).
"""
