variable "bucket" {
  description = "Name of the bucket; unique on AWS."
  type        = string
}

variable "region" {
  description = "AWS region of the bucket; AWS_DEFAULT_REGION of the workers."
  type        = string
  default     = "us-east-1"
}

variable "days_to_regret" {
  description = "Days for which a deleted object can be restored."
  type        = number
  default     = 30

  validation {
    condition     = var.days_to_regret >= 1
    error_message = "At least one day."
  }
}

output "remote" {
  description = "dvc remote add --default store URL"
  value       = "s3://${aws_s3_bucket.hiar.id}/hiar"
}

output "policies" {
  description = "Attach the first to the role of the workers, the second to who cleans up."
  value       = [aws_iam_policy.worker.arn, aws_iam_policy.keeper.arn]
}
