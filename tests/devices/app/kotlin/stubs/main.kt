// Reads texts, a line each, and writes each as the example does before it embeds it.
package stubs

import weightspace.normalized

fun main() {
    for (line in generateSequence(::readlnOrNull)) println(normalized(line))
}
