// org.json, which is part of Android.
package org.json

class JSONObject(private val text: String) {
    fun getJSONArray(name: String): JSONArray = TODO("$text $name")
}

abstract class JSONArray {
    abstract fun length(): Int
    abstract fun getJSONArray(index: Int): JSONArray
    abstract fun getDouble(index: Int): Double
    abstract fun getString(index: Int): String
}
