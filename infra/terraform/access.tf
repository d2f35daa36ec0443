# A worker reads and adds objects. Only those who run `hiar storage gc --delete` may delete.
data "aws_iam_policy_document" "worker" {
  statement {
    sid       = "SeeWhatIsThere"
    actions   = ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.hiar.arn]
  }
  statement {
    sid       = "ReadAndAdd"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    resources = ["${aws_s3_bucket.hiar.arn}/*"]
  }
}

data "aws_iam_policy_document" "keeper" {
  source_policy_documents = [data.aws_iam_policy_document.worker.json]

  statement {
    sid       = "Delete"
    actions   = ["s3:DeleteObject"]
    resources = ["${aws_s3_bucket.hiar.arn}/*"]
  }
}

resource "aws_iam_policy" "worker" {
  name   = "${var.bucket}-worker"
  policy = data.aws_iam_policy_document.worker.json
}

resource "aws_iam_policy" "keeper" {
  name   = "${var.bucket}-keeper"
  policy = data.aws_iam_policy_document.keeper.json
}
