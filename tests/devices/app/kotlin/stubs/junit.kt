// JUnit 4, which androidx.test.ext:junit brings.
package org.junit

annotation class Test

object Assert {
    fun assertTrue(message: String, condition: Boolean) = check(condition) { message }
}
