"""What every other room uses: errors, files, paths, tables, pages, and facts about this machine.

No notebook teaches it. It imports nothing else of the package.
"""
