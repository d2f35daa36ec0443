# The bucket for the DVC remote and MLflow's artifacts on AWS, with least-privilege policies for its users:
#   terraform -chdir=infra/terraform init && terraform -chdir=infra/terraform apply -var bucket=NAME
terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

provider "aws" {
  region = var.region
}

resource "aws_s3_bucket" "hiar" {
  bucket = var.bucket

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_public_access_block" "hiar" {
  bucket                  = aws_s3_bucket.hiar.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "hiar" {
  bucket = aws_s3_bucket.hiar.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "hiar" {
  bucket = aws_s3_bucket.hiar.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

# Objects deleted by `hiar storage gc`, or with stolen keys, can be restored for a while.
resource "aws_s3_bucket_versioning" "hiar" {
  bucket = aws_s3_bucket.hiar.id

  versioning_configuration {
    status = "Enabled"
  }
}

# `hiar storage gc` decides which runs are kept, as it knows what belongs together: no current object expires by itself.
resource "aws_s3_bucket_lifecycle_configuration" "hiar" {
  bucket     = aws_s3_bucket.hiar.id
  depends_on = [aws_s3_bucket_versioning.hiar]

  rule {
    id     = "parts-of-broken-uploads"
    status = "Enabled"
    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }

  rule {
    id     = "deleted-objects"
    status = "Enabled"
    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.days_to_regret
    }
    expiration {
      expired_object_delete_marker = true
    }
  }
}

data "aws_iam_policy_document" "transport" {
  statement {
    sid       = "NothingInTheClear"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.hiar.arn, "${aws_s3_bucket.hiar.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }
    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_policy" "hiar" {
  bucket = aws_s3_bucket.hiar.id
  policy = data.aws_iam_policy_document.transport.json
}
