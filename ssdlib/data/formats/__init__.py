"""Readers of labeled folders: Pascal VOC, COCO, YOLO, CSV, and XML files beside their images.

Each reader returns the same record, `records.LabeledFolder`; a new format is one more reader in `layouts`.
"""
