"""Readers of labeled folders: Pascal VOC, COCO, YOLO, and XML files beside their images.

Each reader returns the same record, `records.LabeledFolder`; a new format is one more reader in `layouts`.
"""
